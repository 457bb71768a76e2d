"""From a composed config to built parts. The only file that calls `instantiation.build`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs.instantiation import build
from esvit_pl.evaluation.names import PROBES

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.checkpoints import Checkpoint
    from esvit_pl.data import ImageDataModule
    from esvit_pl.datasets import Splits
    from esvit_pl.modules import Pretrainer


def construct(cfg: DictConfig, key: str, **parts: Any) -> Any:
    """Build the node at `key`; `parts` are what other nodes became.

    Raises:
        ValueError: what the part says of its settings, with the config key in front.
    """
    node = OmegaConf.select(cfg, key)
    # Two steps: Hydra would turn a dataclass among the parts into a config.
    make = build(node, key=key, _partial_=True, _convert_="all")
    try:
        return make(**parts)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key}: {error}") from error


def images(cfg: DictConfig, given: Splits | None = None) -> tuple[Splits, Recipe]:
    """The images (or those that are `given` in their place), and what is done to them."""
    return given or construct(cfg, "dataset"), construct(cfg, "augment")


def datamodule(cfg: DictConfig, splits: Splits, recipe: Recipe, **overrides: Any) -> ImageDataModule:
    return construct(cfg, "datamodule", dataset=splits, recipe=recipe, seed=cfg.seed, **overrides)


def pretrainer(cfg: DictConfig, recipe: Recipe) -> Pretrainer:
    """The module with all its parts, checked against the crops and the length of the training."""
    from esvit_pl.augment import EvaluationTransform

    epochs = check_epochs(cfg)
    if cfg.start_epoch and cfg.init_from is None and cfg.ckpt_path is None:
        raise ValueError(
            f"start_epoch={cfg.start_epoch} leaves out the first epochs, and there are no weights of an earlier "
            "training; give init_from="
        )
    seed_weights(cfg)
    backbone = construct(cfg, "backbone")
    check_crops(recipe, backbone)
    module: Pretrainer = construct(
        cfg,
        "module",
        backbone=backbone,
        objective=construct(cfg, "loss"),
        optimizer=construct(cfg, "optimizer"),
        num_global=recipe.num_global,
        seed=cfg.seed,
        start_epoch=cfg.start_epoch,
        transform=EvaluationTransform(recipe),
        config=plain(cfg),
    )
    if epochs is not None and not cfg.trainer.fast_dev_run:
        module.check_durations(epochs)
    return module


def seed_weights(cfg: DictConfig) -> None:
    """Seed what initial weights are drawn from; everything later has seeds of its own."""
    from pytorch_lightning import seed_everything

    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, got {cfg.seed}")
    seed_everything(cfg.seed, verbose=False)


def check_epochs(cfg: DictConfig) -> int | None:
    """How many epochs there will be; None for a training that ``trainer.max_steps`` or ``max_time`` ends."""
    epochs = cfg.trainer.max_epochs
    if epochs is None or epochs == -1:
        return None
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"trainer.max_epochs must be a whole number, 1 or more, got {epochs}")
    return epochs


def check_crops(recipe: Recipe, backbone: Backbone) -> None:
    """Refuse crops that are smaller than one patch, and views of another number of channels."""
    smallest = min(recipe.sizes)
    if smallest < backbone.patch_size:
        raise ValueError(
            f"augment: a crop of {smallest} px is smaller than a patch of the backbone ({backbone.patch_size} px); "
            "raise augment.local_size or augment.global_size"
        )
    channels = backbone.spec.get("in_chans", 3)
    if channels != recipe.channels:
        raise ValueError(
            f"backbone.in_chans={channels}, and augment.mean and augment.std of length {recipe.channels} make views of "
            f"as many channels; set backbone.in_chans={recipe.channels}, or give mean and std three numbers each, or "
            "one each for grey views"
        )


def start(cfg: DictConfig, module: Pretrainer) -> tuple[str | None, str | None]:
    """Weights that the training begins with, from ``init_from`` or ``ckpt_path``.

    Returns:
        The checkpoint that Lightning is to resume from, if it is one of ours, and a line to print.
    """
    from esvit_pl.checkpoints import read_checkpoint

    if cfg.ckpt_path is not None:  # of a training that began with init_from, too
        with naming("ckpt_path"):
            if read_checkpoint(cfg.ckpt_path).format == "esvit_pl":
                return cfg.ckpt_path, None
            return None, module.continue_from(read_checkpoint(cfg.ckpt_path, moments=True))
    if cfg.init_from is not None:
        with naming("init_from"):
            source = read_checkpoint(cfg.init_from)
            line = module.start_from(source, **plain(cfg.init))
        note_preparation(cfg, source)
        return None, line
    return None, None


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Put the config's key in front of what a lower room has to say."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def evaluated(cfg: DictConfig) -> Checkpoint:
    """What lies at ``ckpt_path``, in any format."""
    from esvit_pl.checkpoints import read_checkpoint

    with naming("ckpt_path"):
        return read_checkpoint(cfg.ckpt_path)


def frozen_backbone(cfg: DictConfig, source: Checkpoint | None = None) -> Backbone:
    """The backbone of ``ckpt_path``; ``backbone=`` beside it settles what the file leaves open, and is compared."""
    from esvit_pl.checkpoints import backbone_of

    source = source or evaluated(cfg)
    wanted = construct(cfg, "backbone").spec if cfg.get("backbone") is not None else None
    with naming("ckpt_path"):
        backbone = backbone_of(source, network=cfg.network, backbone=wanted)
    note_preparation(cfg, source)
    return backbone


def note_preparation(cfg: DictConfig, source: Checkpoint) -> None:
    """Say where ``augment`` standardises images otherwise than the training of the weights, if that is known."""
    if source.recipe is None or cfg.get("augment") is None:
        return
    theirs, ours = source.recipe, construct(cfg, "augment")
    names = ("normalize", "mean", "std") if theirs.normalize == ours.normalize == "dataset" else ("normalize",)
    differences = [
        f"augment.{name}={_word(getattr(theirs, name))} there, {_word(getattr(ours, name))} here"
        for name in names
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if differences:
        say(f"note: {source.path} was trained on images standardised otherwise: {'; '.join(differences)}")


def say(line: str) -> None:
    """Print a line, in the first of several processes alone."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, flush=True)


def trainer(cfg: DictConfig, data: ImageDataModule) -> Trainer:
    """The Trainer with its loggers and callbacks, writing into the run folder; every epoch is logged, however short."""
    quieten()
    check_accelerator(cfg)
    check_epochs(cfg)
    made = construct(
        cfg,
        "trainer",
        logger=bag(cfg, "logger"),
        callbacks=bag(cfg, "callbacks"),
        default_root_dir=cfg.paths.output_dir,
        **_checkpointing(cfg),
    )
    made.log_every_n_steps = min(made.log_every_n_steps, steps_an_epoch(made, data))
    return made


def steps_an_epoch(trainer: Trainer, data: ImageDataModule) -> int:
    """Optimizer steps in an epoch of training, 1 at least."""
    from esvit_pl.data import limited

    batches = len(data.train_images) // (data.batch_size * trainer.world_size)
    batches = limited(batches, trainer.limit_train_batches)
    return max(batches // trainer.accumulate_grad_batches, 1)


def fit(trainer: Trainer, module: LightningModule, data: ImageDataModule, ckpt_path: str | None) -> None:
    """Train, from a checkpoint if there is one; a signal ends the process as it does elsewhere.

    Left alone, Lightning ends it with 1 at Ctrl-C, like a failure, and with 0 at SIGTERM, like a success.
    """
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    if trainer.limit_train_batches == 0:  # Lightning would end at once, as a success
        raise ValueError("trainer.limit_train_batches=0 leaves nothing to train on; raise it, or leave it null")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise


def quiet_trainer(cfg: DictConfig) -> Trainer:
    """A Trainer of the same kind for a measurement on the side, of all images: no bar, no log, no checkpoint."""
    overrides = {"enable_progress_bar": False, "fast_dev_run": False, "limit_val_batches": None, "overfit_batches": 0.0}
    side = OmegaConf.merge(cfg, {"trainer": overrides})
    return construct(cast(DictConfig, side), "trainer", logger=False, callbacks=[], enable_checkpointing=False)


def check_accelerator(cfg: DictConfig) -> None:
    """Refuse a GPU that is not there, with the remedy that Lightning's own message lacks."""
    import torch

    wanted = cfg.trainer.accelerator
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        raise ValueError(
            f"trainer.accelerator={wanted}, and torch {torch.__version__} finds no GPU on this machine; "
            "choose trainer=cpu, or trainer=default for whatever there is"
        )


def quieten() -> None:
    """Keep what Lightning says of itself out of a command's output. An application may; the library never does."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 on torch 2.9 and newer
        ".*no `validation_step`.*",  # k-NN is a callback: pretraining has no validation loop
        ".*does not have many workers.*",
        ".*dirpath has changed.*",  # a resumed run writes into a folder of its own
        ".*sync_dist=True.*",  # accuracies are equal on all ranks; rates and losses are the first one's
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


def bag(cfg: DictConfig, key: str) -> list[Any]:
    """Every named node of a group that may hold several."""
    return [construct(cfg, f"{key}.{name}") for name, node in (cfg.get(key) or {}).items() if node is not None]


def choice(group: str) -> str | None:
    """Which option of a config group this run has."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().runtime.choices.get(group) if HydraConfig.initialized() else None


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain Python, fit for a checkpoint."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def _word(value: Any) -> str:
    """As on the command line."""
    return f"[{','.join(f'{number:g}' for number in value)}]" if isinstance(value, tuple) else str(value)


def _checkpointing(cfg: DictConfig) -> dict[str, bool]:
    saves = any(
        "ModelCheckpoint" in str(node.get("_target_")) for node in (cfg.get("callbacks") or {}).values() if node
    )
    return {"enable_checkpointing": saves}
