"""HunyuanVideo's autoencoder: attention frame by frame is diffusers' attention under its causal mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock
from torch import Tensor

from newtonrewards.models.hunyuan import causal_attention


def test_attention_without_a_mask_is_the_same() -> None:
    torch.manual_seed(0)
    block, x, weight = HunyuanVideo15AttnBlock(8), torch.randn(1, 8, 4, 3, 5), torch.randn(1, 8, 4, 3, 5)

    def run(attend: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        start = x.clone().requires_grad_()
        out = attend(start)
        return out.detach(), torch.autograd.grad((out * weight).sum(), start)[0]

    for ours, theirs in zip(run(lambda z: causal_attention(block, z)), run(block), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
