"""The size, memory, disk and time of a training before it starts: ``esvit-pretrain dry_run=true`` or ``timed``."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs import assemble, trainers, weights
from esvit_pl.configs.processes import processes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from esvit_pl.augment import Recipe
    from esvit_pl.data import ImageDataModule
    from esvit_pl.datasets import Splits
    from esvit_pl.modules import Pretrainer
    from esvit_pl.profiling.memory import Need

MARGIN = 0.1
"""Share of memory and disk that is to stay free."""
OUT_OF_PROPORTION = 5
"""Heads of so many times the backbone's parameters are more than its features can use."""


@dataclass(frozen=True)
class Plan:
    """The numbers of a training; sizes are in bytes. `make` computes it."""

    data: str
    """How the images were read, and what was left out."""
    images: int
    processes: int
    batch_size: int
    accumulate: int
    steps_per_epoch: int
    steps: int
    epochs: float
    lr: float
    """Peak learning rate, for the global batch."""
    lr_per_256: float
    shortened: str | None
    """Which durations shrink because the training is short."""
    beginning: str | None
    """From where it goes on; None for a new training."""
    optimizer: str
    backbone: int
    """Parameters of the student's backbone."""
    heads: int
    """Parameters of its heads, prototypes among them."""
    weights: int
    """Student, teacher, centres."""
    gradients: int
    optimizer_state: int
    device: str
    """Where the training will run: "cuda" or "cpu"."""
    memory: int | None
    """The most that a process will allocate at once, predicted; None where no prediction is possible."""
    available_memory: int | None
    """What the device has left; None where it is not on this machine."""
    checkpoint: int
    """Size of one file."""
    checkpoints: int
    """Number of files at the end."""
    folder: Path
    """Above the run folder."""
    free_disk: int
    """What is left there."""
    warnings: tuple[str, ...]
    """What does not fit, with the nearest settings that do."""
    epoch_seconds: float | None = None
    """How long an epoch takes without the measurements at its end; None unless a few steps were timed."""
    step_seconds: float | None = None
    """The same for the computation of a micro-batch alone."""
    loading_seconds: float | None = None
    """The same for loading one."""

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.processes * self.accumulate

    @property
    def disk(self) -> int:
        """All checkpoints together."""
        return self.checkpoint * self.checkpoints

    def __str__(self) -> str:
        """Lines for a terminal."""
        from esvit_pl.profiling.batch_size import as_size

        per_step = f"{self.batch_size} x {self.processes} processes x {self.accumulate} accumulated"
        held = (
            f"student, teacher and centres {as_size(self.weights)}, gradients {as_size(self.gradients)}, "
            f"{self.optimizer} {as_size(self.optimizer_state)}"
        )
        there = "no such device here" if self.available_memory is None else f"{as_size(self.available_memory)} there"
        rows = {
            "images": f"{self.images:,}",
            "global batch": f"{self.global_batch:,} images ({per_step})",
            "steps": f"{self.steps:,} ({self.steps_per_epoch:,} an epoch, {self.epochs:g} epochs)",
            "peak learning rate": f"{self.lr:.4g} ({self.lr_per_256:g} per 256 images)",
            "durations": self.shortened,
            "beginning": self.beginning,
            "parameters": f"{self.backbone / 1e6:.1f} M backbone, {self.heads / 1e6:.1f} M heads with prototypes",
            "memory per process": f"unknown beyond {held}"
            if self.memory is None
            else f"{as_size(self.memory)} at most, predicted ({there}): {held}, the rest views and activations",
            "time an epoch": None
            if self.epoch_seconds is None or self.step_seconds is None or self.loading_seconds is None
            else f"{as_time(self.epoch_seconds)}, {as_time(self.epoch_seconds * self.epochs)} in all, without "
            f"measurements such as k-NN: {self.step_seconds:.3g} s to compute {self.batch_size} images on noise, "
            f"{self.loading_seconds:.3g} s to load them",
            "disk for checkpoints": f"{as_size(self.disk)} ({self.checkpoints} x {as_size(self.checkpoint)}); "
            f"free at {self.folder}: {as_size(self.free_disk)}",
        }
        width = max(map(len, rows))
        below = "\n" + " " * (width + 2)
        lines = [f"{name:<{width}}  {text}".replace("\n", below) for name, text in rows.items() if text is not None]
        return "\n".join([self.data, "", *lines, *(f"\nwarning: {line}" for line in self.warnings)])


def make(cfg: DictConfig, images: Splits | None = None, *, timed: bool = False) -> Plan:
    """The plan of a config of ``esvit-pretrain``. It lists the images but reads none, and allocates no new weights.

    A checkpoint of ``ckpt_path`` is read, and is refused as the training would refuse it. Weights of ``init_from`` are
    not read: they may have to be downloaded.

    Args:
        cfg: of ``esvit-pretrain``.
        images: in place of ``cfg.dataset``.
        timed: take a few steps and load a few batches, to say how long an epoch takes.

    Raises:
        ValueError: a setting that the training would refuse before its first step.
    """
    import torch

    from esvit_pl.data import EpochSampler
    from esvit_pl.optim import scaled_lr

    recipe = assemble.construct(cfg, "augment")
    with torch.device("meta"):
        module = assemble.pretrainer(cfg, recipe)
    data = assemble.datamodule(cfg, images or assemble.construct(cfg, "dataset"), recipe)
    accumulate = cfg.trainer.accumulate_grad_batches
    window = EpochSampler(  # which refuses a batch that is larger than the data
        len(data.train_images),
        batch_size=data.batch_size,
        ranks=processes(cfg),
        rank=0,
        accumulate=accumulate,
        seed=cfg.seed,
        start=lambda batches: (0, 0),
    ).window
    per_epoch = trainers.steps_an_epoch(cfg, data)
    length = trainers.length(cfg, data)
    learning = sum(size(p) for p in module.student.parameters() if p.requires_grad)
    kept = {id(value): value for value in module.state_dict(keep_vars=True).values()}
    held = sum(map(size, kept.values()))  # shared weights count once, as on disk
    state = module.optimizer.states * learning
    folder = run_folder(cfg)
    device = device_of(cfg)
    need, available, warnings = memory(cfg, module, recipe, device, learning)
    made = Plan(
        data=data.dataset.describe(),
        images=len(data.train_images),
        processes=processes(cfg),
        batch_size=data.batch_size,
        accumulate=accumulate,
        steps_per_epoch=per_epoch,
        steps=round(per_epoch * (length - cfg.start_epoch)),
        epochs=length - cfg.start_epoch,
        lr=scaled_lr(module.optimizer.lr, window),
        lr_per_256=module.optimizer.lr,
        shortened=module.shortened(length),
        beginning=weights.start(cfg, module, data)[1] if cfg.ckpt_path is not None else None,
        optimizer=module.optimizer.name,
        backbone=count(module.student.backbone),
        heads=count(module.student.heads),
        weights=held,
        gradients=learning,
        optimizer_state=state,
        device=device,
        memory=None if need is None else need.predicted_bytes,
        available_memory=available,
        checkpoint=held + state,
        checkpoints=kept_checkpoints(cfg, cfg.start_epoch, length),
        folder=folder,
        free_disk=shutil.disk_usage(folder).free,
        warnings=tuple(warnings),
    )
    made = replace(made, warnings=(*made.warnings, *disk(cfg, made, length), *proportions(made)))
    if not timed:
        return made
    step, loading, epoch = times(cfg, recipe, data, per_epoch)
    return replace(made, step_seconds=step, loading_seconds=loading, epoch_seconds=epoch)


def is_timed(dry_run: object) -> bool:
    """What ``dry_run`` says: true or timed.

    Raises:
        ValueError: it says something else.
    """
    if dry_run not in (True, "timed"):
        raise ValueError(f"dry_run={dry_run} is unknown; write dry_run=true, dry_run=false or dry_run=timed")
    return dry_run == "timed"


# -- memory


def device_of(cfg: DictConfig) -> str:
    """Where the trainer would run."""
    import torch

    asked = cfg.trainer.accelerator
    there = asked in ("gpu", "cuda") or (asked == "auto" and torch.cuda.is_available())
    return "cuda" if there else "cpu"


def memory(
    cfg: DictConfig, module: Pretrainer, recipe: Recipe, device: str, learning: int
) -> tuple[Need | None, int | None, list[str]]:
    """What a process needs, what the device has, and what to do if the one is more than the other."""
    import torch

    from esvit_pl.profiling.available_memory import available_bytes
    from esvit_pl.profiling.batch_size import as_size, judge
    from esvit_pl.profiling.memory import predict

    batch, accumulate = cfg.datamodule.batch_size, cfg.trainer.accumulate_grad_batches
    here = device == "cpu" or torch.cuda.is_available()
    how = {"sides": recipe.sizes, "precision": cfg.trainer.precision, "device": device if here else "cpu"}
    try:
        need = predict(module.step, module.optimizer, batch_size=batch, accumulate=accumulate, **how)
    except (ValueError, RuntimeError) as error:  # a precision, or an operation of a foreign part, that it does not know
        return None, None, [f"memory was not predicted: {str(error).strip().splitlines()[0]}"]
    if not here:
        line = "no GPU is here, so memory is what a CPU would need; a GPU's kernels keep something else, often less"
        return need, None, [line]
    available = available_bytes(device)
    limit = (1 - MARGIN) * available
    if need.predicted_bytes <= limit:
        return need, available, []

    def along_a_line(*_: Any, batch_size: int, accumulate: int, **__: Any) -> Need:
        """What other batches need: views and activations grow with the batch, which is seen in no time."""
        grows = (need.views_bytes + need.activations_bytes) * batch_size // batch
        gradients = need.gradients_bytes if accumulate == 1 else learning
        held = need.weights_bytes + need.optimizer_bytes + gradients
        return need._replace(batch=batch_size, predicted_bytes=held + grows)

    whole = batch * accumulate
    verdict = judge(
        module.step,
        module.optimizer,
        batch=whole,
        available_bytes=available,
        margin=MARGIN,
        predict=along_a_line,
        **how,
    )
    lines = [f"memory: {verdict._replace(batch=batch, needed_bytes=need.predicted_bytes)}"]
    recomputing = cast(DictConfig, OmegaConf.merge(cfg, {"module": {"grad_checkpointing": True}}))
    if not cfg.module.grad_checkpointing:
        try:
            with torch.device("meta"):
                step = assemble.pretrainer(recomputing, recipe).step
            less = predict(step, module.optimizer, batch_size=batch, accumulate=accumulate, **how).predicted_bytes
        except ValueError:  # this backbone cannot
            return need, available, lines
        fits = "it fits then" if less <= limit else "too much still, but it helps"
        lines.append(f"memory: module.grad_checkpointing=true needs {as_size(less)} with the same batch; {fits}")
    return need, available, lines


def proportions(plan: Plan) -> list[str]:
    """A line if the heads are far larger than the backbone."""
    if plan.heads <= OUT_OF_PROPORTION * plan.backbone:
        return []
    return [
        f"heads: {plan.heads / 1e6:.1f} M parameters of heads are out of proportion to a backbone of "
        f"{plan.backbone / 1e6:.1f} M; loss.hidden_dim=256 loss.out_dim=64 loss.num_prototypes=256 fit a small one"
    ]


# -- disk


def run_folder(cfg: DictConfig) -> Path:
    """The first folder above the run's that exists."""
    return next(path for path in Path(cfg.paths.output_dir).absolute().parents if path.is_dir())


def kept_checkpoints(cfg: DictConfig, start: int, end: float) -> int:
    """Files that the callbacks leave of the epochs from `start` to `end`."""
    nodes = trainers.checkpoint_nodes(trainers.with_few_checkpoints(cfg, end))
    return sum(files_of(node, start, int(end)) for node in nodes.values())


def files_of(node: Any, start: int, end: int) -> int:
    """Files of one callback, if epochs trigger it."""
    if trainers.is_ours(node):
        every = node.get("every_n_epochs")
        return 2 + (end // every - start // every if every else 0)  # the last and the one before
    every, best = node.get("every_n_epochs"), node.get("save_top_k", 1)
    numbers = end // every - start // every if every else 1
    return (numbers if best == -1 else min(numbers, best)) + bool(node.get("save_last"))


def disk(cfg: DictConfig, plan: Plan, end: float) -> list[str]:
    """A line if the checkpoints do not fit into what is free."""
    from esvit_pl.profiling.batch_size import as_size

    room = (1 - MARGIN) * plan.free_disk
    if plan.disk <= room:
        return []
    said = f"disk: {plan.checkpoints} checkpoints need {as_size(plan.disk)}, and {as_size(plan.free_disk)} are free"
    nodes = trainers.checkpoint_nodes(trainers.with_few_checkpoints(cfg, end))
    numbered = nodes.pop("checkpoint", None)
    others = sum(files_of(node, cfg.start_epoch, int(end)) for node in nodes.values())
    for every in range(1, int(end) + 1) if numbered is not None else ():
        fewer = {**numbered, "every_n_epochs": every}
        if plan.checkpoint * (others + files_of(fewer, cfg.start_epoch, int(end))) <= room:
            return [f"{said}; callbacks.checkpoint.every_n_epochs={every} keeps as many as fit, or choose another disk"]
    if 2 * plan.checkpoint <= room:
        return [f"{said}; callbacks.checkpoint.every_n_epochs=0 keeps the last two alone, or choose another disk"]
    return [f"{said}: not even two fit; choose another disk with paths.log_dir=FOLDER"]


# -- time


def times(cfg: DictConfig, recipe: Recipe, data: ImageDataModule, per_epoch: int) -> tuple[float, float, float]:
    """Seconds of a micro-batch, of its loading, and of an epoch."""
    from esvit_pl.datasets import Splits, Subset
    from esvit_pl.profiling.epoch import batch_seconds, micro_batch_seconds, step_seconds
    from esvit_pl.profiling.loader import batches_needed
    from esvit_pl.profiling.memory import PRECISIONS, SHORT

    trainers.check_devices(cfg)
    device, precision = device_of(cfg), str(cfg.trainer.precision)
    module = assemble.pretrainer(cfg, recipe)
    step = step_seconds(
        module.step,
        module.optimizer,
        recipe.sizes,
        batch_size=data.batch_size,
        precision=PRECISIONS[SHORT.get(precision, precision)],
        device=device,
    )
    needed = batches_needed(data.num_workers) * data.batch_size
    images = data.train_images
    some = Splits(Subset(images, [index * len(images) // needed for index in range(needed)]))
    loader = assemble.datamodule(cfg, some, recipe, persistent_workers=False).train_dataloader()
    loading = batch_seconds(loader, batch_size=data.batch_size, num_workers=data.num_workers)
    both = micro_batch_seconds(step, loading, at_once=device != "cpu" and data.num_workers > 0)
    return step, loading, both * cfg.trainer.accumulate_grad_batches * per_epoch


def as_time(seconds: float) -> str:
    """``3 min``"""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.2g} s"


def size(x: Tensor) -> int:
    """Bytes of a tensor."""
    return x.numel() * x.element_size()


def count(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
