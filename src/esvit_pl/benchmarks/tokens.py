"""``python -m esvit_pl.benchmarks.tokens``: what Swin saves by computing no padding.

``python -m esvit_pl.benchmarks.tokens 14`` measures windows of 14 alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from esvit_pl.backbones import build
from esvit_pl.backbones.swin import Swin, SwinBlock, attend

Part = Callable[[Tensor], Tensor]


class Saving(NamedTuple):
    """Of one part of a Swin, forward and backward."""

    window: int
    side: int
    """Of the crops, in pixels."""
    part: str
    """ "whole", or "stage 1" and so on: its patch merging and blocks."""
    padded_seconds: float
    """Median of the repeats, of the straightforward form."""
    seconds: float
    """Median of the repeats, of ours."""
    ratio: float
    """Median of the repeats' ratios, theirs to ours."""
    error: float
    """Largest difference of the two results or of their gradients to the input, relative to the largest value."""


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
        return mixed[:, : x.shape[1], : x.shape[2]]


def with_padding(backbone: Swin) -> Swin:
    """A copy of a Swin in the straightforward form."""
    backbone = deepcopy(backbone)
    for stage in backbone.stages:
        for block in stage.blocks:
            block.__class__ = PaddedBlock
    return backbone


def token_savings(
    *,
    windows: tuple[int, ...] = (7, 14),
    crops: tuple[tuple[int, int], ...] = ((8, 96), (2, 224)),
    batch_size: int = 4,
    repeats: int = 5,
    embed_dim: int = 96,
    depths: tuple[int, ...] = (2, 2, 6, 2),
    num_heads: tuple[int, ...] = (3, 6, 12, 24),
) -> Iterator[Saving]:
    """What each stage of a Swin and the whole save, the two forms in turn; one after the other, as they are measured.

    Args:
        windows: sides in tokens.
        crops: number for each image and side in pixels.
        batch_size: images.
        repeats: pairs of passes measured, after one to warm up.
        embed_dim, depths, num_heads: of the Swin; a Swin-T unless given.
    """
    for window in windows:
        torch.manual_seed(0)
        ours = build("swin", window=window, embed_dim=embed_dim, depths=depths, num_heads=num_heads, drop_path_rate=0.0)
        assert isinstance(ours, Swin)
        for number, side in crops:
            images = torch.randn(batch_size * number, ours.spec["in_chans"], side, side)
            for part, padded, mine, x in _parts(with_padding(ours), ours, images):
                yield Saving(window, side, part, *_compare(padded, mine, x, repeats))


def _parts(padded: Swin, ours: Swin, images: Tensor) -> Iterator[tuple[str, Part, Part, Tensor]]:
    """Name, the two forms and the input of every part."""
    with torch.no_grad():
        x = ours.embed(images)
    for number, (theirs, mine) in enumerate(zip(padded.stages, ours.stages, strict=True), start=1):
        yield f"stage {number}", theirs, mine, x
        with torch.no_grad():
            x = mine(x)
    yield "whole", lambda x: padded(x).pooled, lambda x: ours(x).pooled, images


def _compare(padded: Part, ours: Part, x: Tensor, repeats: int) -> tuple[float, float, float, float]:
    """Seconds of both, their ratio, and the error."""
    times = []
    for _ in range(repeats + 1):
        (theirs, reference), (mine, results) = _pass(padded, x), _pass(ours, x)
        times.append((theirs, mine, theirs / mine))
    error = max(
        ((mine - theirs).abs().max() / theirs.abs().max()).item()
        for theirs, mine in zip(reference, results, strict=True)
    )
    padded_seconds, seconds, ratio = (median(column) for column in zip(*times[1:], strict=True))
    return padded_seconds, seconds, ratio, error


def _pass(function: Part, x: Tensor) -> tuple[float, tuple[Tensor, Tensor]]:
    """Seconds of one pass forward and backward; the result and the gradient to x."""
    x = x.detach().requires_grad_()
    start = perf_counter()
    result = function(x)
    result.square().sum().backward()
    seconds = perf_counter() - start
    assert x.grad is not None
    return seconds, (result.detach(), x.grad)


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU; Swin-T, float32, forward and backward")
    print("batch 4: 32 crops of 96 px, 8 of 224 px; the two forms in turn, medians of 5")
    print("window  crops    part       padded  tokens only  ratio  error")
    chosen = tuple(int(word) for word in sys.argv[1:])
    for saving in token_savings(windows=chosen or (7, 14)):
        print(
            f"{saving.window:>6}{saving.side:>4} px    {saving.part:<8}{1000 * saving.padded_seconds:6.0f} ms"
            f"{1000 * saving.seconds:10.0f} ms{saving.ratio:7.2f}{saving.error:7.0e}",
            flush=True,
        )
