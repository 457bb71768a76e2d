"""Pure functions of the step: what moves during training is a closed form, so nothing of it need be saved."""

from __future__ import annotations

import math


def cosine(step: float, total: float, *, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 towards `end`, which step `total` would reach."""
    if total <= 0:
        raise ValueError(f"cosine needs a positive total, got {total}")
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / total))


def warmup_cosine(
    step: int, total: int, *, start: float, end: float, warmup: int = 0, warmup_start: float = 0.0
) -> float:
    """`warmup` steps linearly from `warmup_start` up to `start` (reached by the last of them), then `cosine` to `end`.

    The learning rate of DINO and EsViT (docs/recipes.md, "Optimizer"); with ``warmup=0`` weight decay and momentum.
    """
    if not 0 <= warmup <= total:
        raise ValueError(f"warm-up takes {warmup} of {total} steps; it must be within training: shorten warmup_epochs")
    if step < warmup:
        return warmup_start + (start - warmup_start) * (step / (warmup - 1) if warmup > 1 else 1.0)
    return cosine(step - warmup, total - warmup, start=start, end=end) if total > warmup else start


def teacher_temperature(epoch: int, *, start: float = 0.04, end: float = 0.07, warmup_epochs: int = 30) -> float:
    """Linear from `start` to `end` over `warmup_epochs` epochs (reached by the last of them), then `end`.

    By whole epochs, as released (docs/recipes.md, "Temperatures").
    """
    if epoch >= warmup_epochs:
        return end
    return start + (end - start) * (epoch / (warmup_epochs - 1) if warmup_epochs > 1 else 0.0)


def in_steps(epochs: float, steps_per_epoch: int) -> int:
    """A duration in epochs, which may be a fraction, as optimizer steps."""
    return round(epochs * steps_per_epoch)
