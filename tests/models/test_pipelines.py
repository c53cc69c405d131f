"""Every family against diffusers' own pipeline of the same folder: clips, autoencoder, LoRA in a fresh process."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from newtonrewards.core.errors import CheckpointError, InputError, RecipeError, ShapeError, run_command
from newtonrewards.core.recipe import validate
from newtonrewards.core.video import read_clip, to_8bit
from newtonrewards.models import generate, lora
from newtonrewards.models.base import draw_noise
from newtonrewards.models.flow_matching import flow_matching_loss
from newtonrewards.models.load import FAMILIES, ModelConfig, load_video_model
from newtonrewards.models.pipelines import PipelineModel
from newtonrewards.models.sampling import sample

CAPTION, NEGATIVE = "an object slides down a ramp of 30 degrees", "blurred, still"
STEPS = 4
SIZE = {"num_frames": 9, "height": 32, "width": 32}
TINY = {name: importlib.import_module(f"newtonrewards.models.tiny_{name}") for name in FAMILIES}
STYLES = [(name, style) for name, tiny in TINY.items() for style in tiny.STYLES]
FIRST_STYLES = [(name, tiny.STYLES[0]) for name, tiny in TINY.items()]
WITH_LORA = [*FIRST_STYLES, ("wan", "2.2-a14b")]  # which has two files of adapters

# Nothing of this project in it: what any user of diffusers does with a pipeline folder and an adapter folder.
FRESH = """
import json, sys
from pathlib import Path
import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from safetensors.torch import load_file, save_file
DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
for case in map(Path, sys.argv[1:]):
    pipeline = DiffusionPipeline.from_pretrained(case / "pipeline")
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(case / "lora", weight_name="pytorch_lora_weights.safetensors")
    else:
        pipeline.transformer.load_lora_adapter(case / "lora", weight_name="pytorch_lora_weights.safetensors")
    second = "pytorch_lora_weights_2.safetensors"
    if (case / "lora" / second).exists():
        pipeline.load_lora_weights(case / "lora", weight_name=second, load_into_transformer_2=True)
    call = json.loads((case / "call.json").read_text())
    if hasattr(pipeline, "guider"):
        pipeline.guider = pipeline.guider.new(guidance_scale=call.pop("guidance_scale"))
    frames = pipeline(**call, image=Image.open(case / "image.png"), **load_file(case / "call.safetensors")).frames
    save_file({"frames": frames.contiguous()}, case / "frames.safetensors")
"""


def our_model(name: str, pipeline: Any) -> PipelineModel:
    return FAMILIES[name](pipeline, **SIZE, fps=16.0, negative_caption=NEGATIVE)


@pytest.fixture(scope="module")
def first_frame(clips: Tensor) -> Tensor:
    """(1, 3, 32, 32), rounded to 8 bits as a picture file is."""
    return (clips[:1, 0] * 255).round() / 255


@pytest.fixture(autouse=True)
def no_posterior_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """CogVideoX's and LTX's pipelines draw the first frame's latents from the encoder's posterior; we take its mode."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


def call(model: PipelineModel, first_frame: Tensor, noise: Tensor, guidance_scale: float) -> dict[str, Any]:
    """Arguments with which the model's own pipeline makes its clip from this noise."""
    pipeline, spec = model.pipeline, model.spec
    arguments: dict[str, Any] = {
        "prompt": CAPTION,
        "negative_prompt": NEGATIVE,
        "latents": noise,
        "num_inference_steps": STEPS,
        "guidance_scale": guidance_scale,
        "output_type": "pt",
        **SIZE,
    }
    if spec.from_image:
        arguments["image"] = Image.fromarray(to_8bit(first_frame)[0])
    if spec.name == "cogvideox":
        length = pipeline.transformer.config.max_text_seq_length
        arguments |= {"latents": noise.transpose(1, 2).contiguous(), "max_sequence_length": length}
    if spec.name == "ltx":
        arguments |= {"latents": ltx_latents(pipeline, first_frame, noise, spec.from_image), "frame_rate": 16}
    if spec.name == "hunyuan" and spec.from_image:  # it takes the size from the picture
        del arguments["height"], arguments["width"]
    return arguments


def ltx_latents(pipeline: Any, first_frame: Tensor, noise: Tensor, from_image: bool) -> Tensor:
    """LTX's pipeline wants given latents packed, and the first frame already in them: by its own preparation."""
    packed: Tensor = pipeline._pack_latents(noise)
    if not from_image:
        return packed
    pixels = pipeline.video_processor.preprocess(Image.fromarray(to_8bit(first_frame)[0]), height=32, width=32)
    size = (noise.shape[1], 32, 32, SIZE["num_frames"])
    prepared, given = pipeline.prepare_latents(pixels, 1, *size, torch.float32, torch.device("cpu"))
    return torch.where(given[..., None] > 0, prepared, packed)


def pipeline_clip(pipeline: Any, arguments: dict[str, Any]) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    arguments = dict(arguments)
    if hasattr(pipeline, "guider"):
        pipeline.guider = pipeline.guider.new(guidance_scale=arguments.pop("guidance_scale"))
    frames = pipeline(**arguments).frames
    assert isinstance(frames, Tensor)
    return frames


def our_clip(model: PipelineModel, first_frame: Tensor, noise: Tensor, guidance_scale: float) -> Tensor:
    condition = model.condition([CAPTION], first_frame)
    latents = sample(model, condition, noise, num_inference_steps=STEPS, guidance_scale=guidance_scale)
    return model.decode(latents, condition)


def train_a_little(model: PipelineModel) -> None:
    """LoRA layers that change the clip."""
    lora.add(model, rank=3, alpha=6.0, seed=1)
    for transformer in model.trainable.values():
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))


@pytest.mark.parametrize(("name", "style"), STYLES)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
def test_our_sampler_makes_the_clip_of_the_pipeline(
    name: str, style: str, guidance_scale: float, first_frame: Tensor
) -> None:
    model = our_model(name, TINY[name].tiny_pipeline(style))
    noise = draw_noise(model.spec, 0, 0, [0])
    ours = our_clip(model, first_frame, noise, guidance_scale)
    theirs = pipeline_clip(model.pipeline, call(model, first_frame, noise, guidance_scale))
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "style"), [(name, style) for name, style in STYLES if "t2v" not in style])
def test_encode_and_decode_are_those_of_the_autoencoder(
    name: str, style: str, first_frame: Tensor, clips: Tensor
) -> None:
    """One clip there and back; the first frame, where it is given as it is, counts among what is given."""
    model = our_model(name, TINY[name].tiny_pipeline(style))
    vae = model.vae
    condition = model.condition([CAPTION], clips[:1, 0])
    latents = model.encode(clips[:1])
    with torch.no_grad():
        raw = vae.encode(clips[:1].transpose(1, 2) * 2 - 1).latent_dist.mode()
        if condition.channels.shape[2] == 1:  # the given first latent frame replaces the clip's own
            raw[:, :, :1] = vae.encode(clips[:1, :1].transpose(1, 2) * 2 - 1).latent_dist.mode()
        told = [torch.zeros(1)] if vae.config.get("timestep_conditioning") else []
        theirs = (vae.decode(raw, *told).sample.transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    assert theirs.std() > 0.01
    torch.testing.assert_close(model.decode(latents, condition), theirs, rtol=0, atol=1e-4)


def test_the_saved_lora_opens_in_diffusers_in_a_fresh_process_and_makes_the_same_clip(
    first_frame: Tensor, tmp_path: Path
) -> None:
    ours = {}
    for name, style in WITH_LORA:
        case = tmp_path / f"{name} {style}"
        model = our_model(name, TINY[name].tiny_pipeline(style))
        model.pipeline.save_pretrained(case / "pipeline")
        noise = draw_noise(model.spec, 0, 0, [0])
        arguments = call(model, first_frame, noise, 1.0)
        before = our_clip(model, first_frame, noise, 1.0)
        train_a_little(model)
        ours[case] = our_clip(model, first_frame, noise, 1.0)
        assert (ours[case] - before).abs().max() > 1e-3
        lora.save(model, case / "lora")
        arguments.pop("image").save(case / "image.png")
        save_file({"latents": arguments.pop("latents").contiguous()}, case / "call.safetensors")
        (case / "call.json").write_text(json.dumps(arguments))
    subprocess.run([sys.executable, "-c", FRESH, *map(str, ours)], check=True, cwd=tmp_path)
    for case, clip in ours.items():
        theirs = load_file(case / "frames.safetensors")["frames"]
        torch.testing.assert_close(theirs, clip, rtol=0, atol=1e-4, msg=lambda text, case=case: f"{case.name}: {text}")


def test_an_unknown_family_and_a_foreign_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such model; there are embedded, wan, cogvideox"):
        validate(ModelConfig, {"name": "wann", "path": "x"}, where="test")
    TINY["ltx"].tiny_pipeline("0.9").save_pretrained(tmp_path / "ltx")
    with pytest.raises(CheckpointError, match=r"this is a LTXImageToVideoPipeline.*Did you mean name: ltx"):
        load_video_model(ModelConfig(name="wan", path=tmp_path / "ltx"))
    (tmp_path / "ltx" / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="can't load the ltx pipeline"):
        load_video_model(ModelConfig(name="ltx", path=tmp_path / "ltx"))


@pytest.mark.parametrize("name", TINY)
def test_a_size_that_the_autoencoder_cannot_make_is_refused(name: str, clips: Tensor) -> None:
    pipeline = TINY[name].tiny_pipeline(TINY[name].STYLES[0])
    with pytest.raises(InputError, match=r"can't make 10 frames.*plus 1"):
        FAMILIES[name](pipeline, num_frames=10, height=32, width=32)
    model = our_model(name, pipeline)
    with pytest.raises(ShapeError, match="wants"):
        model.encode(clips[:1, :5])


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_pipeline_command_writes_a_folder_that_loads(name: str, tmp_path: Path, first_frame: Tensor) -> None:
    tiny = TINY[name]
    assert tiny.main(["--out", str(tmp_path / "tiny"), "--seed", "3"]) == 0
    model = load_video_model(
        ModelConfig(name=name, path=tmp_path / "tiny", **SIZE, fps=16.0, negative_caption=NEGATIVE)
    )
    assert isinstance(model, PipelineModel)
    noise = draw_noise(model.spec, 0, 0, [0])
    in_memory = our_model(name, tiny.tiny_pipeline(tiny.STYLES[0], seed=3))
    ours, theirs = (our_clip(m, first_frame, noise, 1.0) for m in (model, in_memory))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "style"), [*((name, tiny.STYLES[0]) for name, tiny in TINY.items()), ("wan", "2.1-t2v")]
)
def test_stored_embeddings_give_the_same_loss_and_the_encoders_go(
    name: str, style: str, clips: Tensor, tmp_path: Path
) -> None:
    TINY[name].tiny_pipeline(style).save_pretrained(tmp_path / "pipeline")
    config = ModelConfig(name=name, path=tmp_path / "pipeline", **SIZE, fps=16.0, negative_caption=NEGATIVE)
    captions = [CAPTION, 'a ball falls beside a sign that says "stop"']
    plain, storing = (load_video_model(config) for _ in range(2))
    assert isinstance(storing, PipelineModel)
    storing.keep_embeddings(tmp_path / "embeddings")
    for caption, clip in zip(captions, clips, strict=False):
        storing.condition([caption], clip[:1])
    storing.free_encoders()
    assert not [part for name, part in storing.pipeline.components.items() if "encoder" in name and part is not None]
    noise, sigma = draw_noise(plain.spec, 0, 0, [0, 1]), torch.tensor([0.3, 0.95])
    losses, empties = [], []
    for model in (plain, storing):
        condition = model.condition(captions, clips[:2, 0])
        losses.append(flow_matching_loss(model, model.encode(clips[:2]), noise, sigma, condition).detach())
        empties.append(condition.empty_text)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(*empties)
    with pytest.raises(InputError, match="'another caption' is not among the stored embeddings"):
        storing.condition(["another caption"], clips[:1, 0])
    storing.save(tmp_path / "saved", torch.float32)  # whole again: the encoders come from the folder
    again = load_video_model(config.model_copy(update={"path": tmp_path / "saved"}))
    assert torch.equal(again.condition([CAPTION], clips[:1, 0]).text, plain.condition([CAPTION], clips[:1, 0]).text)


def test_generate_makes_a_clip_from_text_alone_where_the_model_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--num-frames", "9", "--height", "32", "--width", "32", "--num-inference-steps", "2"]
    for style, code in (("1.0-t2v", 0), ("1.0", 1)):
        TINY["cogvideox"].tiny_pipeline(style).save_pretrained(tmp_path / style)
        arguments = ["--model", str(tmp_path / style), "--caption", CAPTION, "--out", str(tmp_path / f"out {style}")]
        assert run_command(generate.main, [*arguments, *sizes]) == code
    assert read_clip(tmp_path / "out 1.0-t2v" / "clip.mp4").frames.shape == (9, 3, 32, 32)
    assert "this cogvideox model starts from a first frame" in capsys.readouterr().err


def test_the_worked_example_of_a_new_family_leaves_nothing_out() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/models.md", "exec"), names)
    assert issubclass(names["NewModel"], PipelineModel)
    assert not names["NewModel"].__abstractmethods__
    assert all(name in text for name in FAMILIES)
