"""What Swin saves by computing no padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from benchmarks.comparison import Comparison, compare
from esvit_pl.backbones.swin import Swin, SwinBlock, attend

Part = Callable[[Tensor], Tensor]


class PaddedBlock(SwinBlock):
    """The straightforward form, as released: padding is computed like any token, and cut off at the end."""

    def window_attention(self, x: Tensor) -> Tensor:
        windows, padded = self.windows(x)
        mixed = attend(*self.query_key_value(windows), self.bias(padded, x), self.attn.scale)
        mixed = mixed.unflatten(1, (windows.shape[1], -1)).transpose(2, 3).flatten(3)  # (b windows w2 c)
        mixed = self.attn.proj_drop(self.attn.proj(mixed))
        rows, columns = (length // self.window for length in padded)
        mixed = mixed.unflatten(1, (rows, columns)).unflatten(3, (self.window, self.window)).transpose(2, 3)
        mixed = mixed.flatten(3, 4).flatten(1, 2).roll((self.shift, self.shift), (1, 2))
        cut: Tensor = mixed[:, : x.shape[1], : x.shape[2]]
        return cut


def with_padding(backbone: Swin) -> Swin:
    """A copy of a Swin in the straightforward form."""
    backbone = deepcopy(backbone)
    for stage in backbone.stages:
        for block in stage.blocks:
            block.__class__ = PaddedBlock
    return backbone


def token_savings(
    ours: Swin,
    *,
    crops: tuple[tuple[int, int], ...] = ((8, 96), (2, 224)),
    batch_size: int = 4,
    repeats: int = 5,
    device: str = "cpu",
) -> Iterator[Comparison]:
    """What each stage of a Swin and the whole save, forward and backward; one after the other, as they are measured.

    Args:
        ours: the Swin.
        crops: number for each image and side in pixels.
        batch_size: images.
        repeats: pairs of passes measured.
        device: where it runs.
    """
    torch.manual_seed(0)
    ours = deepcopy(ours).to(device)
    for number, side in crops:
        images = torch.randn(batch_size * number, ours.spec["in_chans"], side, side, device=device)
        for part, padded, mine, x in _parts(with_padding(ours), ours, images):
            yield compare(
                f"{side} px, {part}", partial(_pass, padded, x), partial(_pass, mine, x), repeats=repeats, device=device
            )


def _parts(padded: Swin, ours: Swin, images: Tensor) -> Iterator[tuple[str, Part, Part, Tensor]]:
    """Name, the two forms and the input of every part."""
    with torch.no_grad():
        x = ours.embed(images)
    for number, (theirs, mine) in enumerate(zip(padded.stages, ours.stages, strict=True), start=1):
        yield f"stage {number}", theirs, mine, x
        with torch.no_grad():
            x = mine(x)
    yield "whole", lambda x: padded(x).pooled, lambda x: ours(x).pooled, images


def _pass(function: Part, x: Tensor) -> tuple[Tensor, Tensor]:
    """One pass forward and backward: the result, and the gradient to x."""
    x = x.detach().requires_grad_()
    result = function(x)
    (grad,) = torch.autograd.grad(result.square().sum(), x)
    return result.detach(), grad
