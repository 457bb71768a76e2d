"""The Trainer of a command: how it is made, how it fits, and what it says."""

from __future__ import annotations

import logging
import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs import run_folder
from esvit_pl.configs.assemble import bag, check_epochs, construct
from esvit_pl.configs.processes import processes
from esvit_pl.configs.weights import say
from esvit_pl.evaluation.names import PROBES
from esvit_pl.runs.claim import resume_words
from esvit_pl.secret_values import starred

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer

    from esvit_pl.data import ImageDataModule
    from esvit_pl.runs.folder import RunFolder

_SAVERS = ("TrainingCheckpoints", "ModelCheckpoint")


def make(cfg: DictConfig, data: ImageDataModule, callbacks: Sequence[Callback] = ()) -> Trainer:
    """The Trainer with its loggers and callbacks, writing into the run folder; every epoch is logged, however short."""
    from lightning_fabric.plugins import TorchCheckpointIO

    from esvit_pl.saving import WholeCheckpoints

    quieten()
    check_devices(cfg)
    made: Trainer = construct(
        cfg,
        "trainer",
        logger=bag(cfg, "logger"),
        callbacks=[*bag(with_few_checkpoints(cfg, length(cfg, data)), "callbacks"), *callbacks],
        default_root_dir=cfg.paths.output_dir,
        **_checkpointing(cfg, callbacks),
    )
    if type(made.strategy.checkpoint_io) is TorchCheckpointIO:  # nobody asked for another
        made.strategy.checkpoint_io = WholeCheckpoints()
    _leave_signals_alone(made)
    made.log_every_n_steps = min(made.log_every_n_steps, steps_an_epoch(cfg, data))  # type: ignore[attr-defined]
    return made


def steps_an_epoch(cfg: DictConfig, data: ImageDataModule) -> int:
    """Optimizer steps in an epoch of training, 1 at least."""
    from esvit_pl.data import limited

    accumulate = cfg.trainer.accumulate_grad_batches
    if accumulate < 1:
        raise ValueError(f"trainer.accumulate_grad_batches must be 1 or more, got {accumulate}")
    batches = len(data.train_images) // (data.batch_size * processes(cfg))
    batches = limited(batches, cfg.trainer.get("overfit_batches") or cfg.trainer.limit_train_batches)
    return max(int(batches // accumulate), 1)


def length(cfg: DictConfig, data: ImageDataModule) -> float:
    """Epochs of the whole training; 0 if nothing but ``trainer.max_time`` ends it."""
    epochs = check_epochs(cfg)
    return max(cfg.trainer.max_steps / steps_an_epoch(cfg, data), 0) if epochs is None else epochs


def with_few_checkpoints(cfg: DictConfig, epochs: float) -> DictConfig:
    """The config with an interval of numbered checkpoints, where ``callbacks.checkpoint`` names none."""
    from esvit_pl.callbacks.intervals import checkpoint_interval

    nodes = checkpoint_nodes(cfg).items()
    open_ended = [name for name, node in nodes if is_ours(node) and node.get("every_n_epochs") is None]
    interval = {"every_n_epochs": checkpoint_interval(epochs)}
    return cast(DictConfig, OmegaConf.merge(cfg, {"callbacks": dict.fromkeys(open_ended, interval)}))


def checkpoint_nodes(cfg: DictConfig) -> dict[str, Any]:
    """The callbacks that save checkpoints."""
    nodes = (cfg.get("callbacks") or {}).items()
    return {str(name): node for name, node in nodes if isinstance(node, DictConfig) and _saves(node)}


def _saves(node: DictConfig) -> bool:
    return str(node.get("_target_")).endswith(_SAVERS)


def is_ours(node: Any) -> bool:
    return str(node.get("_target_")).endswith(_SAVERS[0])


@contextmanager
def watched(trainer: Trainer, run: RunFolder) -> Iterator[None]:
    """`ranks.watched`, and the run folder tells how it ended."""
    from esvit_pl import ranks

    def tell(death: ranks.Death) -> None:
        run.end_early(status="stopped" if death.code > 128 else "failed", error=death.sentence)
        run_folder.release()

    with ranks.watched(trainer, tell):
        yield


def fit(trainer: Trainer, module: LightningModule, data: ImageDataModule, ckpt_path: str | None) -> None:
    """Train, from a checkpoint if there is one. Ctrl-C is a KeyboardInterrupt, which Lightning would make an exit 1."""
    from esvit_pl.data.at_work import LoadingStopped
    from esvit_pl.data.workers import sharing_memory

    if trainer.limit_train_batches == 0:  # Lightning would end at once, as a success
        raise ValueError("trainer.limit_train_batches=0 leaves nothing to train on; raise it, or leave it null")
    try:
        with sharing_memory() if data.num_workers else nullcontext():
            trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    except RuntimeError as error:  # torch tells of a dead loading process wherever the training is
        batches = getattr(trainer.train_dataloader, "batches", None)
        sentence = None if batches is None else batches.in_words(error)
        if sentence is not None:
            raise LoadingStopped(sentence) from error
        raise
    except SystemExit as stop:
        if trainer.is_global_zero and (again := _resume_command(trainer)) is not None:
            say(f"go on with it: {again}")
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise


def _resume_command(trainer: Trainer) -> str | None:
    """The command line that goes on with a training that was stopped; None if nothing is saved."""
    from esvit_pl.callbacks import TrainingCheckpoints

    savers = [saver for saver in trainer.callbacks if isinstance(saver, TrainingCheckpoints)]  # type: ignore[attr-defined]
    words = next((resume_words(saver.folder.parent) for saver in savers), None)
    return None if words is None else shlex.join(starred(words))  # what is said stands in the run's log, too


def quiet(cfg: DictConfig, *, bar: bool = False) -> Trainer:
    """A Trainer of the same kind for a measurement on the side, of all images, without log and checkpoint."""
    from esvit_pl.callbacks.progress import ImagesBar

    quieten()
    overrides = {"enable_progress_bar": bar, "fast_dev_run": False, "limit_val_batches": None, "overfit_batches": 0.0}
    side = OmegaConf.merge(cfg, {"trainer": overrides})
    parts: dict[str, Any] = {"logger": False, "callbacks": [ImagesBar()] if bar else [], "enable_checkpointing": False}
    made: Trainer = construct(cast(DictConfig, side), "trainer", **parts)
    return made


def check_devices(cfg: DictConfig) -> None:
    """Refuse GPUs that are not there, with the remedy that Lightning's own message lacks; before any image is read."""
    import torch

    processes(cfg)  # which refuses a number that means nothing
    wanted = str(cfg.trainer.accelerator)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted in ("gpu", "cuda") and not gpus and not torch.backends.mps.is_available():
        raise ValueError(
            f"trainer.accelerator={wanted}, and torch {torch.__version__} finds no GPU on this machine; "
            "choose trainer=cpu, or trainer=default for whatever there is"
        )
    if wanted not in ("gpu", "cuda", "auto") or not gpus:
        return
    devices = OmegaConf.select(cfg, "trainer.devices")
    count = 1 if devices in (None, "auto", -1, "-1") else processes(OmegaConf.create({"trainer": {"devices": devices}}))
    if count > gpus:
        raise ValueError(
            f"trainer.devices={devices}, and torch finds {gpus} GPU{'s' * (gpus != 1)} on this machine; "
            f"set trainer.devices={gpus}, and trainer.accumulate_grad_batches={-(-count // gpus)} for the same batch"
        )


def _leave_signals_alone(trainer: Trainer) -> None:
    """Signals are for `signals.end_in_order` and `TrainingCheckpoints`.

    At SIGTERM Lightning's own handler waits for the other processes, which wait for ever if only one of them got the
    signal; at SIGUSR1 in a SLURM job it saves in the middle of a step.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def quieten() -> None:
    """Keep what Lightning says of itself out of a command's output. An application may; the library never does."""
    import pytorch_lightning  # noqa: F401  # its first import sets the levels

    # Where a program imports both packages, all talk through the one that it imported last.
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 on torch 2.9 and newer
        ".*no `validation_step`.*",  # k-NN is a callback: pretraining has no validation loop
        ".*does not have many workers.*",
        ".*dirpath has changed.*",  # a resumed run writes into a folder of its own
        ".*sync_dist=True.*",  # accuracies are equal on all ranks; rates and losses are the first one's
        ".*callbacks used to create the checkpoint need to be provided.*",  # a resumed run may watch other things
        ".*`broadcast_buffers` is deprecated.*",  # its successor does not exist in torch 2.10
        ".*Checkpoint directory .* exists and is not empty.*",  # two checkpoint callbacks share it
    ):
        warnings.filterwarnings("ignore", message=message)


def without_labels(cfg: DictConfig) -> DictConfig:
    """The config without the callbacks that need labels, and a line that says so."""
    needing = [name for name in PROBES if (cfg.get("callbacks") or {}).get(name) is not None]
    if not needing:
        return cfg
    names = " and ".join(f"{PROBES[name]} accuracy (callbacks.{name})" for name in needing)
    say(f"no labels: {names} left out")
    return cast(DictConfig, OmegaConf.merge(cfg, {"callbacks": dict.fromkeys(needing)}))


def _checkpointing(cfg: DictConfig, callbacks: Sequence[Callback]) -> dict[str, bool]:
    from pytorch_lightning.callbacks import Checkpoint

    saves = bool(checkpoint_nodes(cfg)) or any(isinstance(callback, Checkpoint) for callback in callbacks)
    return {"enable_checkpointing": saves}
