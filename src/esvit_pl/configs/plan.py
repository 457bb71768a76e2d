"""The size, memory and disk of a training before it starts: ``esvit-pretrain dry_run=true``."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from esvit_pl.configs import assemble
from esvit_pl.configs.processes import processes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from esvit_pl.datasets import Splits

MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """The numbers of a training; sizes are in bytes. `make` computes it."""

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
    optimizer: str
    backbone: int
    """Parameters of the student's backbone."""
    heads: int
    """Parameters of its heads, prototypes among them."""
    weights: int
    """Student, teacher, centres."""
    gradients: int
    optimizer_state: int
    checkpoint: int
    """Size of one file."""
    checkpoints: int
    """Number of files at the end."""

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.processes * self.accumulate

    def __str__(self) -> str:
        """Lines for a terminal."""
        held = self.weights + self.gradients + self.optimizer_state
        per_step = f"{self.batch_size} x {self.processes} processes x {self.accumulate} accumulated"
        free = shutil.disk_usage(".").free
        rows = {
            "images": f"{self.images:,}",
            "global batch": f"{self.global_batch:,} images ({per_step})",
            "steps": f"{self.steps:,} ({self.steps_per_epoch:,} an epoch, {self.epochs:g} epochs)",
            "peak learning rate": f"{self.lr:.4g} ({self.lr_per_256:g} per 256 images)",
            "parameters": f"{self.backbone / 1e6:.1f} M backbone, {self.heads / 1e6:.1f} M heads with prototypes",
            "memory per process": f"{held / MIB:,.0f} MiB before any activation: student, teacher and centres "
            f"{self.weights / MIB:,.0f}, gradients {self.gradients / MIB:,.0f}, "
            f"{self.optimizer} {self.optimizer_state / MIB:,.0f}",
            "disk for checkpoints": f"{self.checkpoint * self.checkpoints / MIB:,.0f} MiB ({self.checkpoints} x "
            f"{self.checkpoint / MIB:,.0f}); free here: {free / MIB:,.0f} MiB",
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def make(cfg: DictConfig, images: Splits | None = None) -> Plan:
    """The plan of a config of ``esvit-pretrain``. It lists the images but reads none, and allocates no weights.

    Raises:
        ValueError: a setting that the training would refuse before its first step.
    """
    import torch

    from esvit_pl.data import EpochSampler, limited
    from esvit_pl.optim import scaled_lr

    splits, recipe = assemble.images(cfg, images)
    data = assemble.datamodule(cfg, splits, recipe)
    ranks = processes(cfg)
    sampler = EpochSampler(
        len(data.train_images),
        batch_size=data.batch_size,
        ranks=ranks,
        rank=0,
        accumulate=cfg.trainer.accumulate_grad_batches,
        seed=cfg.seed,
        start=lambda batches: (0, 0),
    )
    batches = limited(len(sampler) // data.batch_size, cfg.trainer.limit_train_batches)
    per_epoch = max(batches // cfg.trainer.accumulate_grad_batches, 1)
    with torch.device("meta"):
        module = assemble.pretrainer(cfg, recipe)
    epochs = assemble.check_epochs(cfg)
    steps = per_epoch * (epochs - cfg.start_epoch) if epochs is not None else cfg.trainer.max_steps
    learning = sum(size(p) for p in module.student.parameters() if p.requires_grad)
    kept = module.state_dict(keep_vars=True).values()
    weights = sum(
        size(value) for value in {id(value): value for value in kept}.values()
    )  # shared weights count once, as on disk
    state = module.optimizer.states * learning
    return Plan(
        images=len(data.train_images),
        processes=ranks,
        batch_size=data.batch_size,
        accumulate=cfg.trainer.accumulate_grad_batches,
        steps_per_epoch=per_epoch,
        steps=steps,
        epochs=steps / per_epoch,
        lr=scaled_lr(module.optimizer.lr, sampler.window),
        lr_per_256=module.optimizer.lr,
        optimizer=module.optimizer.name,
        backbone=count(module.student.backbone),
        heads=count(module.student.heads),
        weights=weights,
        gradients=learning,
        optimizer_state=state,
        checkpoint=weights + state,
        checkpoints=kept_checkpoints(cfg, cfg.start_epoch, epochs),
    )


def kept_checkpoints(cfg: DictConfig, start: int, end: int | None) -> int:
    """Files of the default callbacks from epoch `start` to `end`: one every so many epochs, and the last one."""
    nodes = cfg.get("callbacks") or {}
    numbered = nodes.get("checkpoint")
    every = numbered.every_n_epochs if numbered is not None else None
    numbers = end // every - start // every if every and end else 0
    return numbers + (nodes.get("checkpoint_last") is not None)


def size(x: Tensor) -> int:
    """Bytes of a tensor."""
    return x.numel() * x.element_size()


def count(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
