"""Optimizers: parameter groups by name, clipping of each parameter, the learning-rate rule, steps that can be skipped,
LARS, and the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esvit_pl.guard import move_
from esvit_pl.schedules import cosine, warmup_cosine


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups named 'decay' and 'no_decay'; parameters without gradient are left out.

    Biases and one-dimensional parameters do not decay; relative position tables and the prototypes' gains do, as
    released (docs/recipes.md). An empty group is left out.
    """
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            still = name.endswith(".bias") or parameter.ndim == 1
            groups["no_decay" if still else "decay"].append(parameter)
    return [{"name": name, "params": params, "weight_decay": 0.0} for name, params in groups.items() if params]


@torch.no_grad()
def clip_each_(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale every gradient to at most `max_norm`, by its own norm, not the global one, in place (as released).

    Args:
        parameters: those without a gradient are passed over.
        max_norm: the largest norm a gradient keeps; the divisor is norm + 1e-6.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return
    norms = torch.stack(list(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, list((max_norm / (norms + 1e-6)).clamp_(max=1.0).unbind()))


def restore_(optimizer: Optimizer, parameters: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give `optimizer` what another one had gathered, by names of parameters.

    Args:
        optimizer: fresh; its groups and their settings stay.
        parameters: name -> parameter. Shared ones may have several names.
        state: name -> tensors, as torch's optimizers call them; parameters that are not named start afresh.
    """
    held = optimizer.state_dict()
    places = {id(p): place for place, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    held["state"] = {places[id(parameters[name])]: dict(tensors) for name, tensors in state.items()}
    optimizer.load_state_dict(held)


def scaled_lr(lr: float, global_batch: int) -> float:
    """The linear scaling rule (Goyal et al., arXiv 1706.02677): `lr` is per 256 images."""
    return lr * global_batch / 256


def can_skip(optimizer: Optimizer) -> bool:
    """Whether `skip_where_` holds for it. Somebody's own optimizer may not look, so that it cannot."""
    kind = type(optimizer)
    return kind is LARS or (kind in (torch.optim.AdamW, FusedSGD) and all(g["fused"] for g in optimizer.param_groups))


def skip_where_(optimizer: Optimizer, flag: Tensor) -> None:
    """Let every ``step`` until `skip_nothing_` leave parameters and state as they are, to the last bit, where `flag` is
    True, without a look at it on the host.

    Args:
        optimizer: one that `can_skip`.
        flag: 0-d bool on the parameters' device.
    """
    optimizer.found_inf = flag.float()  # type: ignore[attr-defined]  # torch's name; its kernels look for exactly 1.0


def skip_nothing_(optimizer: Optimizer) -> None:
    """Take back `skip_where_`."""
    vars(optimizer).pop("found_inf", None)


class FusedSGD(torch.optim.SGD):
    """torch's fused SGD with momentum, for parameters whose first gradients come at different steps.

    torch's own has the momentum of all parameters or of none to begin with: it fails where prototypes that stood still
    join the others, and a first step that is skipped leaves memory that nobody has written. Here momentum begins at 0,
    which is the same: ``momentum * 0 + g`` is g.
    """

    def __init__(self, params: Any, lr: float = 0.0, *, momentum: float = 0.9) -> None:
        super().__init__(params, lr, momentum, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and self.state[parameter].get("momentum_buffer") is None:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        super().step()
        return loss


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling with momentum (You et al., arXiv 1708.03888), as released.

    Parameters of two and more dimensions: ``g += weight_decay * p``, then ``g *= trust * |p| / |g|`` (1 where a norm is
    0). One-dimensional ones: neither. Then ``buffer = momentum * buffer + g`` and ``p -= lr * buffer``. It can skip a
    step (`skip_where_`).
    """

    def __init__(
        self, params: Any, lr: float = 0.0, *, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if parameter.ndim > 1:
            grad = grad.add(parameter, alpha=group["weight_decay"])
            size, slope = parameter.norm(), grad.norm()
            trust = torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, torch.ones_like(size))
            grad = grad * trust
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer, skip = state["momentum_buffer"], getattr(self, "found_inf", None)
        if skip is None:
            buffer.mul_(group["momentum"]).add_(grad)
            parameter.add_(buffer, alpha=-group["lr"])
        else:
            pushed = (buffer * group["momentum"]).add_(grad)
            move_([buffer, parameter], [pushed, parameter.add(pushed, alpha=-group["lr"])], skip == 0)


@dataclass(frozen=True)
class OptimizerRecipe:
    """Which optimizer, and how its learning rate and weight decay move (docs/recipes.md, "Optimizer").

    Args:
        name: "adamw", "sgd" or "lars".
        lr: peak learning rate per 256 images of the global batch.
        lr_end: learning rate that the cosine reaches, absolute.
        warmup_epochs: epochs of linear warm-up from 0; may be a fraction.
        weight_decay: at the start, for the group 'decay'.
        weight_decay_end: at the end of a cosine over the whole training.
        betas: of AdamW.
        momentum: of SGD and LARS.
        fused: torch's fused kernel for AdamW and SGD, in which a step is skipped without a wait for the GPU
            (`skip_where_`). None: on GPUs and CPUs, unless the loss is scaled. LARS has no such kernel and skips on a
            GPU in any case. On a CPU there is nothing to wait for, and True alone makes it skip as on a GPU.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = 0.0005
    lr_end: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    fused: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.name not in ("adamw", "sgd", "lars"):
            raise ValueError(f"optimizer needs name 'adamw', 'sgd' or 'lars', got {self.name!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer needs two betas of 0 or more and below 1, got {list(self.betas)}")
        for key, value in asdict(self).items():
            if key not in ("name", "betas", "fused") and value < 0:
                raise ValueError(f"optimizer needs {key} of 0 or more, got {value}")

    @property
    def states(self) -> int:
        """Tensors of a parameter's size that the optimizer keeps for it."""
        return 2 if self.name == "adamw" else 1

    def build(self, groups: list[dict[str, Any]], *, scaled: bool = False) -> Optimizer:
        """The optimizer at learning rate 0; `lr_at` and `weight_decay_at` are set before every step.

        Args:
            groups: of `parameter_groups`, on the device that trains.
            scaled: the loss is scaled for float16 (``precision=16-mixed``). Fused kernels take the scale out after
                gradients are clipped, so that None is False then.
        """
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        fused = devices in ({"cuda"}, {"cpu"}) and not scaled if self.fused is None else self.fused
        if self.name == "lars":
            return LARS(groups, lr=0.0, momentum=self.momentum)
        optimizer: Optimizer
        if self.name == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=0.0, betas=self.betas, fused=fused or None)
        elif fused:
            optimizer = FusedSGD(groups, momentum=self.momentum)
        else:
            optimizer = torch.optim.SGD(groups, lr=0.0, momentum=self.momentum)
        optimizer.register_load_state_dict_pre_hook(_with_own_kernel)
        return optimizer

    def lr_at(self, step: int, total: int, *, warmup: int, global_batch: int) -> float:
        """Learning rate of optimizer step `step` of `total`, after `warmup` steps of warm-up."""
        return warmup_cosine(step, total, start=scaled_lr(self.lr, global_batch), end=self.lr_end, warmup=warmup)

    def weight_decay_at(self, step: int, total: int) -> float:
        """Weight decay of the group 'decay' at optimizer step `step` of `total`."""
        return cosine(step, total, start=self.weight_decay, end=self.weight_decay_end)


def _with_own_kernel(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved state for this machine's kernel, fused or not; torch would take on that of the machine that saved it."""
    fused = optimizer.param_groups[0]["fused"]
    return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}
