"""What one sees of a run while it runs, and that looking changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from newtonrewards.core.recipe import validate
from newtonrewards.core.video import read_clip
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training.recipe import TrainRecipe
from newtonrewards.training.train import train


def test_clips_and_a_picture_every_n_steps_and_the_same_weights(content: dict[str, Any], tmp_path: Path) -> None:
    stages = [content["stages"][1] | {"steps": 2, "batch_size": 2}]
    samples = {"every": 1, "clips": 2, "num_inference_steps": 2}
    for name, looks in (("looked", {"samples": samples}), ("blind", {})):
        train(validate(TrainRecipe, content | {"stages": stages} | looks, where="test"), tmp_path / name)
    looked, blind = (load_file(next((tmp_path / n / "model").glob("*.safetensors"))) for n in ("looked", "blind"))
    assert all(torch.equal(looked[name], blind[name]) for name in looked)
    folders = sorted((tmp_path / "looked" / "samples").iterdir())
    assert [folder.name for folder in folders] == ["step_000001", "step_000002"]
    true = ClipFolder(Path(content["data"]["clips"]))[1].frames
    shown, earlier = (read_clip(folder / "1.mp4").frames for folder in (folders[1], folders[0]))
    assert shown.shape[-1] == 2 * true.shape[-1]
    assert torch.allclose(shown[..., : true.shape[-1]], true, atol=1 / 255)
    assert torch.equal(shown[0, ..., true.shape[-1] :], shown[0, ..., : true.shape[-1]])  # the first frame is given
    assert not torch.equal(shown, earlier)  # the weights have changed, the noise hasn't
    log = EventAccumulator(str(next((tmp_path / "looked").rglob("events.out.tfevents*"))), size_guidance={"images": 0})
    log.Reload()
    assert [event.step for event in log.Images("samples")] == [1, 2]
    tags = log.Tags()["scalars"]
    assert "raw/kinematic/second_difference [(H/s)^2]" in tags
    assert {"grad_norm", "seconds_left", "reward"} <= set(tags)
