"""What all tests share: one thread, no network, repeatable property tests, a small clip, and small networks."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)

# The same examples on every run: a red test can be gone back to.
hypothesis.settings.register_profile(
    "newtonrewards", deadline=None, derandomize=True, max_examples=25, database=None, print_blob=True
)
hypothesis.settings.load_profile("newtonrewards")


@pytest.fixture
def square_frames() -> Tensor:
    """(9, 3, 32, 48) frames in 8-bit steps: a light square that moves 3 px/frame to the right over a shaded ground."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(48), indexing="ij")
    ground = torch.stack([x * 4, y * 5, (x + y) * 2]) % 160
    frames = ground.repeat(9, 1, 1, 1)
    for t in range(9):
        frames[t, :, 10:20, 4 + 3 * t : 14 + 3 * t] = torch.tensor([250, 220, 40])[:, None, None]
    return frames / 255


@pytest.fixture(scope="session")
def tiny_networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random networks of transformers' and torchvision's real classes, saved: `dinov2`, `dinov3`, `vjepa2`,
    `resnet18.pth`; and for depth, with their pre-processors, `depth_anything` and `dpt`."""
    import transformers as hf
    from torchvision.models import resnet18

    root, small = tmp_path_factory.mktemp("networks"), {"hidden_size": 24, "num_attention_heads": 2}
    two = {**small, "num_hidden_layers": 2}
    video = {"crop_size": 32, "patch_size": 16, "frames_per_clip": 4, "tubelet_size": 2, "mlp_ratio": 2}
    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    last_two = {"out_indices": [1, 2], "reshape_hidden_states": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patches = {"image_size": 56, "patch_size": 14}
        hf.Dinov2Model(hf.Dinov2Config(**two, **patches)).save_pretrained(root / "dinov2")
        dinov3 = hf.DINOv3ViTConfig(**two, intermediate_size=32, image_size=64, patch_size=16)
        hf.DINOv3ViTModel(dinov3).save_pretrained(root / "dinov3")
        hf.VJEPA2Model(hf.VJEPA2Config(**two, **video, **predictor)).save_pretrained(root / "vjepa2")
        torch.save(resnet18(weights=None).state_dict(), root / "resnet18.pth")
        depth_anything = hf.DepthAnythingConfig(
            backbone_config=hf.Dinov2Config(**two, **patches, **last_two),
            reassemble_hidden_size=24,
            reassemble_factors=[1, 0.5],
            neck_hidden_sizes=[8, 12],
            fusion_hidden_size=8,
            head_hidden_size=8,
            initializer_range=0.3,
        )
        # its last layer ends in a ReLU, which a random network leaves dead half the time
        model = hf.DepthAnythingForDepthEstimation(depth_anything)
        torch.nn.init.constant_(model.head.conv3.bias, 1.0)
        model.save_pretrained(root / "depth_anything")
        dpt = hf.DPTConfig(
            **small,
            num_hidden_layers=4,
            intermediate_size=32,
            image_size=32,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 12, 16],
            fusion_hidden_size=8,
        )
        hf.DPTForDepthEstimation(dpt).save_pretrained(root / "dpt")
    for name, side, mean in (("depth_anything", 56, [0.485, 0.456, 0.406]), ("dpt", 32, [0.5, 0.5, 0.5])):
        size = {"height": side, "width": side}
        hf.DPTImageProcessor(size=size, image_mean=mean, image_std=[0.229, 0.224, 0.225]).save_pretrained(root / name)
    return root
