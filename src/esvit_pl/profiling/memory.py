"""What a training step needs of a device's memory, said before the first step.

The step is run on tensors without numbers (torch's fake tensors): every operation says which tensors it makes, none
computes, and what is alive is counted. Real tensors and torch's profiler say how right that was.
"""

# v views | b images | c channels | h, w pixels

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from esvit_pl.backbones import Backbone
from esvit_pl.isolation import same_random_state
from esvit_pl.optim import OptimizerRecipe
from esvit_pl.pretraining import PretrainingStep
from esvit_pl.profiling.ledger import Fakes, Ledger
from esvit_pl.profiling.measure import peak_bytes
from esvit_pl.profiling.training import Noise, Training, channels_of

Network = TypeVar("Network", bound=nn.Module)

CUDA_GRAIN = 512
"""Bytes of which torch's allocator on CUDA hands out whole multiples."""


class Precision(NamedTuple):
    """What a ``trainer.precision`` means to tensors."""

    weights: torch.dtype
    autocast: torch.dtype | None
    """None is none."""


PRECISIONS = {
    "32-true": Precision(torch.float32, None),
    "bf16-mixed": Precision(torch.float32, torch.bfloat16),
    "16-mixed": Precision(torch.float32, torch.float16),
    "64-true": Precision(torch.float64, None),
}
SHORT = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}


class Need(NamedTuple):
    """The most that is allocated at once in a training with such batches, and what it is made of at that moment."""

    batch: int
    """Images of a micro-batch on one process."""
    accumulate: int
    """Micro-batches of an optimizer step."""
    predicted_bytes: int
    weights_bytes: int
    """Bytes of the weights of both networks and the objective."""
    gradients_bytes: int
    optimizer_bytes: int
    views_bytes: int
    activations_bytes: int
    """All else: what the backward pass needs, and what comes and goes."""
    measured_bytes: int | None = None
    error: float | None = None
    """|predicted - measured| / measured."""


def predict(
    step: PretrainingStep,
    recipe: OptimizerRecipe,
    *,
    sides: Iterable[int],
    batch_size: int,
    accumulate: int = 1,
    precision: str | int = "32-true",
    device: torch.device | str = "cpu",
) -> Need:
    """What a training will need, from one step without numbers; seconds, whatever the batch.

    One process, past the epochs in which heads or prototypes wait, with the optimizer's state and the gradients of the
    step before in place. Other processes, callbacks and loading are not in it.

    Args:
        step: what is trained; may be on the meta device; stays as it is.
        recipe: its optimizer.
        sides: of the views in pixels, global ones first.
        batch_size: images of a micro-batch.
        accumulate: micro-batches of an optimizer step.
        precision: as `PRECISIONS` names it, or 16, 32, 64, "bf16".
        device: where the training will run. Its kernels decide what a step keeps, so that CUDA is predicted where there
            is CUDA.

    Raises:
        ValueError: no views or no images, an unknown precision, or CUDA where there is none.
    """
    device, sides, types = _checked(device, sides, batch_size, accumulate, precision)
    noise = Noise(step, sides, batch_size, types.weights)
    fakes = Fakes(allow_non_fake_inputs=True)
    ledger = Ledger(CUDA_GRAIN if device.type == "cuda" else 1)
    with same_random_state():
        with fakes:
            twin = copy_of(step, lambda tensor: torch.empty_like(tensor, device=device).to(_floats(tensor, types)))
            batch = noise.batch(device)
        ledger.enter(_tensors(twin), "weights")
        ledger.enter(batch["views"], "views")
        with ledger:
            training = Training(twin, recipe, autocast=types.autocast)
            if device.type == "cuda":
                _all_at_once(training.optimizer)
            _fill(twin, training.optimizer, ledger)
            # The first micro-batch of several takes the gradients away, the next ones hold them all along.
            training(batch, first=accumulate == 1, last=True, share=1 / accumulate)
    return Need(batch_size, accumulate, ledger.peak, **{f"{kind}_bytes": size for kind, size in ledger.at_peak.items()})


def predict_pass(
    backbone: Backbone,
    *,
    side: int = 224,
    batch_size: int,
    autocast: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> int:
    """The most bytes that are allocated at once in a pass without gradients, weights included.

    Args:
        backbone: may be on the meta device; stays as it is.
        side: of the images in pixels.
        batch_size: images.
        autocast: type to which layers may round; None leaves them as they are.
        device: where the pass will run; CUDA only where there is CUDA.
    """
    device = torch.device(device)
    ledger = Ledger(CUDA_GRAIN if device.type == "cuda" else 1)
    with Fakes(allow_non_fake_inputs=True):
        twin = copy_of(backbone, lambda tensor: torch.empty_like(tensor, device=device)).requires_grad_(False)
        images = torch.empty(batch_size, channels_of(backbone), side, side, device=device)
    ledger.enter([*_tensors(twin), images], "weights")
    with ledger, torch.no_grad(), torch.autocast(device.type, autocast, enabled=autocast is not None):
        twin(images)
    return ledger.peak


def measure(
    step: PretrainingStep,
    recipe: OptimizerRecipe,
    *,
    sides: Iterable[int],
    batch_size: int,
    accumulate: int = 1,
    precision: str | int = "32-true",
    device: torch.device | str = "cpu",
    steps: int = 2,
) -> int:
    """The most bytes allocated at once in the first optimizer steps of a copy of `step`, on noise.

    On CUDA the allocator's own count; on a CPU the profiler's: everything that goes through torch's allocator, inside
    kernels too, but not what MKL and oneDNN take for themselves.

    Args:
        step: with weights; stays as it is.
        recipe: its optimizer.
        sides, batch_size, accumulate, precision, device: as in `predict`.
        steps: optimizer steps; the second is the first to find gradients and the optimizer's state.
    """
    device, sides, types = _checked(device, sides, batch_size, accumulate, precision)
    noise = Noise(step, sides, batch_size, types.weights)
    with same_random_state():
        twin = copy_of(step, lambda tensor: tensor.detach().to(device, _floats(tensor, types), copy=True))

        def train() -> None:
            training = Training(twin, recipe, autocast=types.autocast)
            for number in range(steps * accumulate):
                place = number % accumulate
                first, last = place == 0, place == accumulate - 1
                training(noise.batch(device), first=first, last=last, share=1 / accumulate)

        weights = sum(_bytes(tensor) for tensor in _tensors(twin))
        return weights + (peak_bytes(train, device) if device.type == "cuda" else profiled_peak(train))


def compare(step: PretrainingStep, recipe: OptimizerRecipe, **how: Any) -> Need:
    """`predict` with what `measure` says beside it. Takes their arguments."""
    need, measured = predict(step, recipe, **how), measure(step, recipe, **how)
    return need._replace(measured_bytes=measured, error=abs(need.predicted_bytes - measured) / measured)


def memory_needs(
    step: PretrainingStep, recipe: OptimizerRecipe, *, batches: Iterable[int], measured: bool = False, **how: Any
) -> Iterator[Need]:
    """A row for each batch. Measuring takes a step with weights, and the memory.

    Args:
        step, recipe: as in `predict`.
        batches: batch sizes.
        measured: run the steps, too.
        how: other arguments of `predict`.
    """
    for batch in batches:
        yield (compare if measured else predict)(step, recipe, batch_size=batch, **how)


def profiled_peak(function: Callable[[], object]) -> int:
    """Most bytes that torch's allocator on the CPU held at once inside `function`, of those given out inside it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        function()
    results = seen.profiler.kineto_results if seen.profiler is not None else None
    assert results is not None
    changes = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _checked(
    device: torch.device | str, sides: Iterable[int], batch_size: int, accumulate: int, precision: str | int
) -> tuple[torch.device, list[int], Precision]:
    device, sides, name = torch.device(device), list(sides), SHORT.get(str(precision), str(precision))
    if not sides or min(*sides, batch_size, accumulate) < 1:
        raise ValueError(
            f"a step needs views, images and micro-batches, got sides={sides}, batch_size={batch_size}, "
            f"accumulate={accumulate}; give 1 or more of each"
        )
    if name not in PRECISIONS:
        raise ValueError(f"no memory is known for precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "the memory of CUDA is predicted where there is CUDA, since its kernels decide what a step keeps; none is "
            "here: use device=cpu for what a CPU would need, or another machine"
        )
    return device, sides, PRECISIONS[name]


def _fill(step: PretrainingStep, optimizer: Optimizer, ledger: Ledger) -> None:
    """Gradients and the optimizer's state, as a step before would have left them."""

    def enter(parameter: Tensor) -> None:
        assert parameter.grad is not None
        ledger.enter([parameter.grad], "gradients")

    for parameter in step.student.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            enter(parameter)
            parameter.register_post_accumulate_grad_hook(enter)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    ledger.enter(state, "optimizer")


def _all_at_once(optimizer: Optimizer) -> None:
    """As torch does on CUDA by itself, but not where parameters are fake: it takes copies of all of them at a time."""
    for group in optimizer.param_groups:
        if "foreach" in group and not group.get("fused"):
            group["foreach"] = True


def copy_of(module: Network, copy: Callable[[Tensor], Tensor]) -> Network:
    """A module with a copy of each parameter and buffer; one that was shared stays shared."""
    places: dict[int, Any] = {}
    for tensor in _tensors(module):
        with torch.no_grad():
            mine = copy(tensor)
        is_parameter = isinstance(tensor, nn.Parameter)
        places[id(tensor)] = nn.Parameter(mine, requires_grad=tensor.requires_grad) if is_parameter else mine
    return deepcopy(module, places)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*module.parameters(), *module.buffers()]


def _floats(tensor: Tensor, precision: Precision) -> torch.dtype:
    return precision.weights if tensor.is_floating_point() else tensor.dtype


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
