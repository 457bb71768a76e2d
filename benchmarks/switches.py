"""What `module.compile` and `module.grad_checkpointing` cost and save: forward and backward of all crops of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.comparison import relative_error
from esvit_pl.backbones import build
from esvit_pl.compiling import compile_
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives import EsViTObjective
from esvit_pl.profiling.measure import peak_bytes, seconds

SWITCHES = {
    "eager": (False, False),
    "grad checkpointing": (True, False),
    "compiled": (False, True),
    "both": (True, True),
}
"""Name -> (grad_checkpointing, compile)."""


class Row(NamedTuple):
    """One setting of the switches."""

    switches: str
    first_seconds: float
    """The first pass, which compiles."""
    pass_seconds: float
    """Median of the repeats: forward and backward of the student on all crops."""
    ratio: float
    """Median over the repeats of eager / this, each repeat compared within itself."""
    peak_bytes: int | None
    """Held at once beyond weights, crops and gradients. None for compiled code on a CPU, which asks torch for one piece
    of memory for many tensors, where nobody can see them."""
    error: float
    """Largest of |gradient - eager's| / |eager's| (2-norms) over the parameters; stochastic depth draws the same."""


def rows(
    *,
    backbone: str = "swin",
    batch_size: int = 4,
    sides: Sequence[int] = (224,) * 2 + (96,) * 8,
    repeats: int = 3,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    switches: Sequence[str] = tuple(SWITCHES),
    **sizes: object,
) -> Iterator[Row]:
    """A row for each setting, all measured in turn.

    Args:
        backbone: name for `build`; Swin's default sizes are Swin-T's.
        batch_size: images.
        sides: of the crops in pixels.
        repeats: passes measured.
        autocast: type for autocast; None: without.
        switches: of `SWITCHES`; eager is always measured.
        sizes: of the backbone, as arguments of `build`.
    """
    names = ["eager", *(name for name in switches if name != "eager")]
    passes = {name: _Pass(backbone, sizes, batch_size, sides, device, autocast, *SWITCHES[name]) for name in names}
    first = {name: seconds(one, device) for name, one in passes.items()}
    gradients = {name: one.gradients() for name, one in passes.items()}
    on_gpu = torch.device(device).type == "cuda"
    peaks = {name: peak_bytes(one, device) if on_gpu or not one.compiled else None for name, one in passes.items()}
    times = [{name: seconds(one, device) for name, one in passes.items()} for _ in range(repeats)]
    for name in names:
        yield Row(
            name,
            first[name],
            median(time[name] for time in times),
            median(time["eager"] / time[name] for time in times),
            peaks[name],
            relative_error(gradients[name], gradients["eager"]),
        )


class _Pass:
    """Forward and backward of a student on the crops of a batch; the same numbers at every call."""

    def __init__(
        self,
        backbone: str,
        sizes: dict[str, object],
        batch_size: int,
        sides: Sequence[int],
        device: torch.device | str,
        autocast: torch.dtype | None,
        grad_checkpointing: bool,
        compiled: bool,
    ) -> None:
        torch.manual_seed(0)
        network = build(backbone, **sizes)
        objective = EsViTObjective(num_prototypes=8)  # as good as none: they take no part
        self.student = MultiCropNetwork(network, objective.heads(network.width, network.region_width)).to(device)
        self.views = [torch.randn(batch_size, 3, side, side, device=device) for side in sides]
        self.device, self.autocast, self.compiled = torch.device(device), autocast, compiled
        if grad_checkpointing:
            network.set_grad_checkpointing()
        if compiled:
            network.check_compiles()
            compile_([self.student], device)

    def __call__(self) -> None:
        torch.manual_seed(1)
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            seen = self.student(self.views)
        projections = [z for views in seen.z.values() for z in views]
        torch.stack([(z.float() * self.directions(z)).mean() for z in projections]).sum().backward()

    def directions(self, z: Tensor) -> Tensor:
        """(p): fixed, so that the gradient of a normed projection is not zero."""
        return torch.linspace(-1, 1, z.shape[-1], device=z.device)

    def gradients(self) -> list[Tensor]:
        return [p.grad.clone() for p in self.student.parameters() if p.grad is not None and p.grad.any()]
