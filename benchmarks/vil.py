"""What ViL's sliding attention costs against a full one as the map grows."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import torch

from esvit_pl.backbones.vil_attention import FullAttention, SlidingAttention
from esvit_pl.profiling.measure import peak_bytes, seconds


class Cost(NamedTuple):
    """Of one attention, forward and backward, with a relative position bias."""

    form: str
    """ "full", or "sliding" with its mode."""
    side: int
    """Of the map, in tokens."""
    seconds: float
    """Median of the repeats."""
    peak_bytes: int
    """Most memory that the tensors of a pass held at once."""


def attention_costs(
    *,
    sides: tuple[int, ...] = (14, 28, 56),
    dim: int = 96,
    num_heads: int = 3,
    window: int = 7,
    batch_size: int = 2,
    repeats: int = 3,
    device: str = "cpu",
) -> Iterator[Cost]:
    """Costs of ViL's sliding attention in its modes, and of a full attention, whose bias is made for the very map.

    Args:
        sides: of square maps, in tokens.
        dim, num_heads: of the attention; the first stage of `vil_tiny` has 96 and 3.
        window: side of a chunk.
        batch_size: images.
        repeats: passes measured, after one to warm up.
        device: where.
    """
    for side in sides:
        torch.manual_seed(0)
        attentions: dict[str, torch.nn.Module] = {"full": FullAttention(dim, num_heads, native=side)}
        for mode in (0, 1, -1):
            attentions[f"sliding, mode {mode}"] = SlidingAttention(dim, num_heads, side=window, mode=mode)
        x = torch.randn(batch_size, 1 + side * side, dim, requires_grad=True, device=device)
        for form, attention in attentions.items():
            attention.to(device)

            def run(attention: torch.nn.Module = attention, side: int = side, x: torch.Tensor = x) -> None:
                attention(x, (side, side)).square().sum().backward()

            run()
            yield Cost(form, side, median(seconds(run, device) for _ in range(repeats)), peak_bytes(run, device))
