"""Refuse weights that are not numbers any more: a training that diverged leaves them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from esvit_pl.checkpoints.checkpoint import Checkpoint
from esvit_pl.checkpoints.locate import listed


def check_finite(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint with NaN or infinity in its weights, in the state of its loss or of its optimizer.

    Raises:
        ValueError: the first few tensors and how many there are, and the run's other checkpoints.
    """
    tensors = list(_tensors(checkpoint))
    broken = [name for name, value in tensors if not _is_finite(value)]
    if broken:
        path, ours = Path(checkpoint.path), checkpoint.format == "esvit_pl"
        others = [str(file) for file in sorted(path.parent.glob("*.ckpt")) if file != path] if ours else []
        way = f"; others of the same run may be whole: {listed(others)}" if others else ""
        raise ValueError(
            f"{checkpoint.path} holds numbers that are not finite (NaN or infinity) in {len(broken)} of its "
            f"{len(tensors)} tensors: {listed(broken)}. Nothing can be computed with it{way}"
        )


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    for network, state in checkpoint.networks.items():
        before = "" if network == "backbone" else f"{network}."
        yield from ((f"{before}{name}", value) for name, value in state.items())
    yield from ((f"objective.{name}", value) for name, value in checkpoint.objective.items())
    for name, moments in (checkpoint.moments.of if checkpoint.moments else {}).items():
        yield from ((f"optimizer.{key} of {name}", value) for key, value in moments.items() if torch.is_tensor(value))


def _is_finite(value: Tensor) -> bool:
    if value.is_meta or value.is_quantized or value.layout != torch.strided:
        return True  # torch cannot ask these; loading refuses them
    small = value.is_floating_point() and value.element_size() == 1  # torch has no isfinite for 8 bits
    return bool((value.float() if small else value).isfinite().all())
