"""Which optimizer, and how its learning rate and weight decay move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from esvit_pl.optim.groups import Decaying
from esvit_pl.optim.lars import LARS
from esvit_pl.optim.sgd import FusedSGD
from esvit_pl.schedules import Duration, Progress, check_shape, in_steps, scheduled

NOT_NEGATIVE = ("lr", "lr_end", "warmup_epochs", "weight_decay", "weight_decay_end", "momentum", "trust")


@dataclass(frozen=True)
class OptimizerRecipe:
    """Which optimizer, and how its learning rate and weight decay move (docs/recipes.md, "Optimizer").

    Args:
        name: "adamw", "sgd" or "lars".
        lr: peak learning rate per 256 images of the global batch.
        lr_end: learning rate towards which the schedule goes, absolute.
        lr_schedule: its shape after the warm-up, a name in `schedules.SHAPES`: "constant", "linear", "cosine", or one
            of your own.
        warmup_epochs: epochs of linear warm-up from 0; may be a fraction. None for 10, and for a tenth of a training of
            less than 100 epochs.
        weight_decay: at the start, for the group 'decay'.
        weight_decay_end: weight decay towards which its schedule goes over the whole training.
        weight_decay_schedule: its shape.
        decaying: which parameters decay: "matrices", "layers" or "all" (`parameter_groups`). "all" also gives every
            parameter a trust ratio of LARS.
        betas: of AdamW.
        momentum: of SGD and LARS.
        trust: LARS' trust coefficient.
        rate_inside: LARS multiplies by the learning rate before it gathers momentum, as SimCLR's does.
        fused: torch's fused kernel for AdamW and SGD. None takes it on GPUs and CPUs, unless the loss is scaled.

    Raises:
        ValueError: a name or a number that cannot be.

    >>> recipe = OptimizerRecipe("sgd", lr=0.1, lr_schedule="linear", warmup_epochs=0, lr_end=0.0)
    >>> [recipe.lr_at(Progress(step, 4), global_batch=512) for step in range(4)]
    [0.2, 0.15000000000000002, 0.1, 0.04999999999999999]
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = 0.0005
    lr_end: float = 1e-6
    lr_schedule: str = "cosine"
    warmup_epochs: float | None = None
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    weight_decay_schedule: str = "cosine"
    decaying: Decaying = "matrices"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    trust: float = 0.001
    rate_inside: bool = False
    fused: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.name not in ("adamw", "sgd", "lars"):
            raise ValueError(f"optimizer needs name 'adamw', 'sgd' or 'lars', got {self.name!r}")
        if self.decaying not in ("matrices", "layers", "all"):
            raise ValueError(f"optimizer needs decaying 'matrices', 'layers' or 'all', got {self.decaying!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer needs two betas of 0 or more and below 1, got {list(self.betas)}")
        for key in NOT_NEGATIVE:
            if (getattr(self, key) or 0) < 0:
                raise ValueError(f"optimizer needs {key} of 0 or more, got {getattr(self, key)}")
        check_shape("optimizer.lr_schedule", self.lr_schedule)
        check_shape("optimizer.weight_decay_schedule", self.weight_decay_schedule)

    @property
    def states(self) -> int:
        """Tensors of a parameter's size that the optimizer keeps for it."""
        return 2 if self.name == "adamw" else 1

    @property
    def durations(self) -> dict[str, Duration]:
        """Parts of the training by the names of their settings."""
        return {"warmup_epochs": Duration(self.warmup_epochs, published=10)}

    def build(self, groups: list[dict[str, Any]], *, scaled: bool = False) -> Optimizer:
        """The optimizer at learning rate 0; `set_` gives it learning rate and weight decay before every step.

        Args:
            groups: of `parameter_groups`, on the device that trains.
            scaled: whether the loss is scaled for float16 (``precision=16-mixed``). Fused kernels take the scale out
                only after gradients are clipped, so they are not chosen then.
        """
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        fused = devices in ({"cuda"}, {"cpu"}) and not scaled if self.fused is None else self.fused
        if self.name == "lars":
            how = {"rate_inside": self.rate_inside, "adapts_all": self.decaying == "all"}
            return LARS(groups, momentum=self.momentum, trust=self.trust, **how)
        optimizer: Optimizer
        if self.name == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=0.0, betas=self.betas, fused=fused or None)
        elif fused:
            optimizer = FusedSGD(groups, momentum=self.momentum)
        else:
            optimizer = torch.optim.SGD(groups, lr=0.0, momentum=self.momentum)
        optimizer.register_load_state_dict_pre_hook(_with_own_kernel)
        return optimizer

    def set_(self, optimizer: Optimizer, progress: Progress, *, global_batch: int) -> None:
        """Give every group the learning rate and weight decay of this step."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr_at(progress, global_batch=global_batch) * group.get("lr_scale", 1.0)
            group["weight_decay"] = self.weight_decay_at(progress) if group["name"].startswith("decay") else 0.0

    def lr_at(self, progress: Progress, *, global_batch: int) -> float:
        """Learning rate of the step that comes next, for a global batch of so many images."""
        warmup = self.durations["warmup_epochs"].of(progress.epochs)
        return scheduled(
            self.lr_schedule,
            progress.step,
            progress.total,
            start=scaled_lr(self.lr, global_batch),
            end=self.lr_end,
            warmup=min(in_steps(warmup, progress.steps_per_epoch), progress.total),
        )

    def weight_decay_at(self, progress: Progress) -> float:
        """Weight decay of the group 'decay' in the step that comes next."""
        start, end = self.weight_decay, self.weight_decay_end
        return scheduled(self.weight_decay_schedule, progress.step, progress.total, start=start, end=end)


def scaled_lr(lr: float, global_batch: int) -> float:
    """The linear scaling rule (Goyal et al., arXiv 1706.02677): `lr` is per 256 images."""
    return lr * global_batch / 256


def _with_own_kernel(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved state for this machine's kernel, fused or not; torch would take that of the machine that saved it."""
    fused = optimizer.param_groups[0]["fused"]
    return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}
