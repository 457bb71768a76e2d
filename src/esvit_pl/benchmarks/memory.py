"""What a training step needs of a device's memory, said before the first step, and what therefore fits.

The step is run, hooks and all, on tensors without numbers (torch's fake tensors): every operation says which tensors it
makes, none computes, and what is alive is counted. Real tensors and torch's profiler say how right that was.
"""

# v views | b images | c channels | h, w pixels

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import cache, cached_property
from itertools import count
from os import sysconf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from esvit_pl.isolation import same_random_state
from esvit_pl.modules.pretrain import Pretrainer
from esvit_pl.profiling.measure import Live, peak_bytes

GIB, MIB = 2**30, 2**20
LATE = 10**6
"""An epoch at which every head and every parameter takes part, whatever waits at the beginning."""
CUDA_GRAIN = 512
"""Bytes of which torch's allocator on CUDA hands out whole multiples."""


MANY_IMAGES = 4096
FEW = 4
"""Guesses along a line, before what is left is halved again and again."""


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
    """Of both networks and the objective."""
    gradients_bytes: int
    optimizer_bytes: int
    views_bytes: int
    activations_bytes: int
    """All else: what the backward pass needs, and what comes and goes."""
    measured_bytes: int | None = None
    error: float | None = None
    """|predicted - measured| / measured."""


def predict(
    module: Pretrainer,
    *,
    sides: Iterable[int],
    batch_size: int,
    accumulate: int = 1,
    precision: str | int = "32-true",
    device: torch.device | str = "cpu",
) -> Need:
    """What training `module` will need, from one step without numbers; seconds, whatever the batch.

    One process, past the epochs in which heads or prototypes wait, with the optimizer's state and the gradients of the
    step before in place. Other processes, callbacks and loading are not in it.

    Args:
        module: may be on the meta device; stays as it is.
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
    fakes = Fakes(allow_non_fake_inputs=True)
    ledger = Ledger(CUDA_GRAIN if device.type == "cuda" else 1)
    channels = channels_of(module)
    with same_random_state():
        with fakes:
            twin = copy_of(module, lambda tensor: torch.empty_like(tensor, device=device).to(_floats(tensor, types)))
            views = [
                torch.empty(batch_size, channels, side, side, device=device, dtype=types.weights) for side in sides
            ]
        twin.stop_if_nonfinite = lambda late: None  # type: ignore[method-assign]  # no numbers, no bad ones
        ledger.enter(_tensors(twin), "weights")
        ledger.enter(views, "views")
        with ledger:
            optimizer = prepare(twin)
            if device.type == "cuda":
                _all_at_once(optimizer)
            _fill(twin, optimizer, ledger)
            # The first micro-batch of several takes the gradients away, the next ones hold them all along.
            micro_batch(twin, optimizer, views, types, first=accumulate == 1, last=True, share=1 / accumulate)
    return Need(batch_size, accumulate, ledger.peak, **{f"{kind}_bytes": size for kind, size in ledger.at_peak.items()})


def measure(
    module: Pretrainer,
    *,
    sides: Iterable[int],
    batch_size: int,
    accumulate: int = 1,
    precision: str | int = "32-true",
    device: torch.device | str = "cpu",
    steps: int = 2,
) -> int:
    """The most bytes allocated at once in the first optimizer steps of a copy of `module`, on noise.

    On CUDA the allocator's own count; on a CPU the profiler's: everything that goes through torch's allocator, inside
    kernels too, but not what MKL and oneDNN take for themselves.

    Args:
        module: with weights; stays as it is.
        sides, batch_size, accumulate, precision, device: as in `predict`.
        steps: optimizer steps; the second is the first to find gradients and the optimizer's state.
    """
    device, sides, types = _checked(device, sides, batch_size, accumulate, precision)
    channels = channels_of(module)
    with same_random_state():
        twin = copy_of(module, lambda tensor: tensor.detach().to(device, _floats(tensor, types), copy=True))

        def train() -> None:
            optimizer = prepare(twin)
            for number in range(steps * accumulate):
                views = [
                    torch.randn(batch_size, channels, side, side, device=device, dtype=types.weights) for side in sides
                ]
                place = number % accumulate
                first, last = place == 0, place == accumulate - 1
                micro_batch(twin, optimizer, views, types, first=first, last=last, share=1 / accumulate)

        weights = sum(_bytes(tensor) for tensor in _tensors(twin))
        return weights + (peak_bytes(train, device) if device.type == "cuda" else profiled_peak(train))


def compare(module: Pretrainer, **how: Any) -> Need:
    """`predict` with what `measure` says beside it. Takes their arguments."""
    need, measured = predict(module, **how), measure(module, **how)
    return need._replace(measured_bytes=measured, error=abs(need.predicted_bytes - measured) / measured)


def memory_needs(module: Pretrainer, *, batches: Iterable[int], measured: bool = False, **how: Any) -> Iterator[Need]:
    """A row for each batch, measured too if asked, which takes a module with weights, and the memory.

    Args:
        module: as in `predict`.
        batches: batch sizes.
        measured: run the steps, too.
        how: other arguments of `predict`.
    """
    for batch in batches:
        yield (compare if measured else predict)(module, batch_size=batch, **how)


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


# What fits


class Verdict(NamedTuple):
    """Whether a batch fits, and how to split it if it does not. As a string, the line to print."""

    batch: int
    needed_bytes: int
    available_bytes: int
    """Of the device, without the margin."""
    micro_batch: int
    """The largest part of the batch that fits and divides it; 0 if no image does."""
    accumulate: int
    micro_bytes: int
    """What a micro-batch needs; of one image if none fits."""
    batch_norm: bool
    margin: float
    """Share of the memory that is to stay free."""

    def __str__(self) -> str:
        needs = f"batch {self.batch} needs {as_size(self.needed_bytes)}"
        there = f"{as_size(self.available_bytes)} are available"
        if self.micro_batch == self.batch:
            return f"{needs}; {there}: it fits"
        if self.needed_bytes <= self.available_bytes:
            there += f", {100 * self.margin:g} % of them to stay free"
        if not self.micro_batch:
            return (
                f"{needs}; {there}. No batch fits, one image takes {as_size(self.micro_bytes)}: choose a smaller "
                "backbone, fewer or smaller views (augment.num_local, augment.global_size), fewer prototypes "
                "(loss.num_prototypes), or trainer.precision=bf16-mixed"
            )
        statistics = f"; batch norm then sees {self.micro_batch} images at a time" if self.batch_norm else ""
        return (
            f"{needs}; {there}. {self.micro_batch} fits ({as_size(self.micro_bytes)}): "
            f"datamodule.batch_size={self.micro_batch} trainer.accumulate_grad_batches={self.accumulate}{statistics}"
        )


def judge(
    module: Pretrainer,
    *,
    batch: int,
    available_bytes: int,
    margin: float = 0.1,
    predict: Callable[..., Need] = predict,
    **how: Any,
) -> Verdict:
    """Whether a batch fits, and if not the fewest micro-batches of equal size that do: the global batch stays.

    Args:
        module: as in `predict`.
        batch: images of an optimizer step on one process.
        available_bytes: of the device (`available_bytes`).
        margin: share of them that is to stay free, for what a prediction does not see.
        predict: what predicts.
        how: ``sides``, ``precision`` and ``device`` of `predict`.
    """

    @cache
    def need(size: int) -> int:
        return predict(module, batch_size=size, accumulate=1 if size == batch else 2, **how).predicted_bytes

    norm = any(isinstance(part, _BatchNorm) for part in module.student.modules())
    if need(batch) <= (1 - margin) * available_bytes:
        return Verdict(batch, need(batch), available_bytes, batch, 1, need(batch), norm, margin)
    parts = [size for size in range(1, batch + 1) if batch % size == 0]
    fitting = fits(need, available_bytes, margin=margin, among=parts)
    if not fitting:
        return Verdict(batch, need(batch), available_bytes, 0, 0, need(1), norm, margin)
    return Verdict(batch, need(batch), available_bytes, *accumulation(batch, fitting), need(fitting), norm, margin)


def fits(
    predict: Callable[[int], int],
    available_bytes: int,
    *,
    margin: float = 0.1,
    among: Sequence[int] = range(1, MANY_IMAGES + 1),
) -> int:
    """The largest batch whose prediction leaves a margin free; 0 if there is none.

    Memory grows with the batch, nearly along a line: each guess is where the line between the largest batch that is
    known to fit and the smallest that is known not to meets the limit. All that is said to fit was predicted to.

    Args:
        predict: batch -> bytes.
        available_bytes: of the device.
        margin: share of them that is to stay free.
        among: the batches to choose from, ascending.
    """
    if not 0 <= margin < 1:
        raise ValueError(f"margin must be 0 or more and below 1, got {margin}; it is the share of memory to stay free")
    limit = (1 - margin) * available_bytes
    low, high = 0, len(among) - 1  # places of what fits and of what does not
    lower, upper = predict(among[low]), predict(among[high])
    if lower > limit:
        return 0
    if upper <= limit:
        return among[high]
    for guesses in count():
        if high - low == 1:
            break
        meeting = among[low] + (limit - lower) / (upper - lower) * (among[high] - among[low])
        guess = max(bisect_right(among, meeting) - 1, low + 1)
        if guesses > FEW:  # no line then
            guess = (low + high) // 2
        size = predict(among[guess])
        if size <= limit:
            low, lower = guess, size
        else:
            high, upper = guess, size
    return among[low]


def accumulation(batch: int, fitting: int) -> tuple[int, int]:
    """(micro-batch, accumulate): the fewest equal parts of a batch that fit; their product is the batch.

    Raises:
        ValueError: not even one image fits.
    """
    if fitting < 1:
        raise ValueError(f"no micro-batch of a batch of {batch} fits: {fitting} images do; it takes 1 or more")
    micro_batch = max(size for size in range(1, min(batch, fitting) + 1) if batch % size == 0)
    return micro_batch, batch // micro_batch


def available_bytes(device: torch.device | str = "cpu", *, root: Path = Path("/")) -> int:
    """What a device has left: on CUDA the driver's count, on a CPU the system's or the control group's limit.

    Args:
        device: of the training.
        root: where /proc and /sys are.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = root / "proc/meminfo"
    if not info.is_file():  # no Linux
        return int(sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE"))
    lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines())
    left = 1024 * int(lines["MemAvailable"].split()[0])  # "kB" there is KiB
    return min([left, *_group_limits(root)])


def _group_limits(root: Path) -> Iterator[int]:
    """Limits of this process's control group and those above it, of both versions of Linux's interface."""
    membership = root / "proc/self/cgroup"
    lines = membership.read_text(encoding="utf-8").splitlines() if membership.is_file() else []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, name = (
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else ("sys/fs/cgroup", "memory.max")
        )
        inside = Path(place.strip("/"))
        for folder in (inside, *inside.parents):
            limit = root / top / folder / name
            words = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
            if words != "max":
                yield int(words)


def as_size(size: float) -> str:
    """``48.2 GiB``"""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


# The step


def prepare(module: Pretrainer) -> Optimizer:
    """Let a module train without a Trainer, far from the beginning; its optimizer."""
    module.trainer = SimpleNamespace(global_step=LATE, current_epoch=LATE, world_size=1)  # type: ignore[assignment]
    module.steps_per_epoch, module.total_steps, module.global_batch = 1, LATE + 1, 1
    module.moments = None
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    module.train()
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, Optimizer)
    return optimizer


def micro_batch(
    module: Pretrainer,
    optimizer: Optimizer,
    views: list[Tensor],
    precision: Precision,
    *,
    first: bool,
    last: bool,
    share: float,
) -> None:
    """Forward and backward, and the optimizer's step after the last, in Lightning's order.

    Gradients of the step before live through the first forward pass: Lightning lets go of them before the backward one.
    """

    def closure() -> Tensor:
        with autocast(precision, views[0].device):
            output = module.training_step({"views": views}, 0)
        loss = output["loss"] * share
        if first:
            module.optimizer_zero_grad(0, 0, optimizer)
        loss.backward()
        if last:
            module.on_before_optimizer_step(optimizer)
        return loss

    if last:
        module.optimizer_step(0, 0, optimizer, closure)
    else:
        closure()


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if precision.autocast is None else torch.autocast(device.type, precision.autocast)


# Counting without numbers


class Fakes(FakeTensorMode):
    """Makes tensors without numbers that say they are on a device."""

    @cached_property
    def avoid_device_init(self) -> bool:
        return not torch.cuda.is_available()  # torch asks anew at every operation, which takes longer than the rest


class Ledger(Live):
    """Counts live storages by what they are for. A fake tensor that is asked for its value says 0.

    Args:
        grain: storages take whole multiples of so many bytes.
    """

    def __init__(self, grain: int = 1) -> None:
        super().__init__()
        self.grain = grain
        self.kinds: dict[int, str] = {}
        self.held = dict.fromkeys(("weights", "gradients", "optimizer", "views", "activations"), 0)
        self.at_peak = dict(self.held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0
        return super().__torch_dispatch__(func, types, args, kwargs)

    def enter(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say what tensors are for; those made before the ledger was opened are counted from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.count(storage)
            key = storage._cdata
            self.held[self.kinds[key]] -= self.size(storage.nbytes())
            self.held[kind] += self.size(storage.nbytes())
            self.kinds[key] = kind

    def size(self, size: int) -> int:
        return -(-size // self.grain) * self.grain

    def grow(self, key: int, size: int) -> None:
        self.kinds[key] = "activations"
        self.held["activations"] += self.size(size)
        self.now += self.size(size)
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, dict(self.held)

    def gone(self, key: int, size: int) -> None:
        super().gone(key, self.size(size))
        self.held[self.kinds.pop(key)] -= self.size(size)


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


def _fill(module: Pretrainer, optimizer: Optimizer, ledger: Ledger) -> None:
    """Gradients and the optimizer's state, as a step before would have left them."""

    def enter(parameter: Tensor) -> None:
        assert parameter.grad is not None
        ledger.enter([parameter.grad], "gradients")

    for parameter in module.student.parameters():
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


def copy_of(module: Pretrainer, copy: Callable[[Tensor], Tensor]) -> Pretrainer:
    """A module with a copy of each parameter and buffer; one that was shared stays shared."""
    places: dict[int, Any] = {}
    for tensor in _tensors(module):
        with torch.no_grad():
            mine = copy(tensor)
        is_parameter = isinstance(tensor, nn.Parameter)
        places[id(tensor)] = nn.Parameter(mine, requires_grad=tensor.requires_grad) if is_parameter else mine
    return deepcopy(module, places)


def channels_of(module: Pretrainer) -> int:
    """Of the images that its backbone takes."""
    return int(module.student.backbone.spec.get("in_chans", 3))


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*module.parameters(), *module.buffers()]


def _floats(tensor: Tensor, precision: Precision) -> torch.dtype:
    return precision.weights if tensor.is_floating_point() else tensor.dtype


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
