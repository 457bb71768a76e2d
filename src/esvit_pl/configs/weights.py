"""Weights that a command begins with or measures: ``ckpt_path=`` and ``init_from=``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esvit_pl import printing
from esvit_pl.configs.assemble import construct
from esvit_pl.configs.instantiation import at

if TYPE_CHECKING:
    from esvit_pl.backbones import Backbone
    from esvit_pl.checkpoints import Checkpoint
    from esvit_pl.configs.resume import Resumed
    from esvit_pl.data import ImageDataModule
    from esvit_pl.modules import Pretrainer


def start(cfg: DictConfig, module: Pretrainer, data: ImageDataModule) -> tuple[Resumed | None, str | None]:
    """Weights that the training begins with, from ``init_from`` or ``ckpt_path``.

    Returns:
        What Lightning is to resume, if the checkpoint is one of ours, and a line to print.
    """
    from esvit_pl.checkpoints import read_checkpoint
    from esvit_pl.configs import resume

    if cfg.ckpt_path is not None:  # of a training that began with init_from, too
        with naming("ckpt_path"):
            source = read_checkpoint(cfg.ckpt_path, moments=True, backbone=module.student.backbone.spec)
            if source.format == "esvit_pl":
                resumed = resume.check(cfg, module, data, source.path)
                return resumed, str(resumed)
            return None, module.continue_from(source)
    if cfg.init_from is not None:
        with naming("init_from"):
            source = read_checkpoint(cfg.init_from, backbone=module.student.backbone.spec)
            how = {name: cfg.init[name] for name in ("network", "heads", "resize_positions")}
            line = module.start_from(source, **how)
        note_preparation(cfg, source)
        return None, line
    return None, None


def evaluated(cfg: DictConfig) -> Checkpoint:
    """What lies at ``ckpt_path``, in any format."""
    from esvit_pl.checkpoints import read_checkpoint

    wanted = construct(cfg, "backbone").spec if cfg.get("backbone") is not None else None
    with naming("ckpt_path"):
        return read_checkpoint(cfg.ckpt_path, backbone=wanted)


def frozen_backbone(cfg: DictConfig, source: Checkpoint | None = None) -> Backbone:
    """The backbone of ``ckpt_path``; ``backbone=`` beside it settles what the file leaves open, and is compared."""
    from esvit_pl.checkpoints import backbone_of
    from esvit_pl.checkpoints.locate import listed

    source = source or evaluated(cfg)
    wanted = construct(cfg, "backbone").spec if cfg.get("backbone") is not None else None
    if source.left_out:
        say(f"note: of {source.path} this is left out: {listed(source.left_out)}")
    with naming("ckpt_path"):
        return backbone_of(source, network=cfg.network, backbone=wanted)


def note_preparation(cfg: DictConfig, source: Checkpoint) -> None:
    """Say where ``augment`` standardises images otherwise than the training of the weights, if that is known."""
    if source.recipe is None:
        return
    theirs, ours = source.recipe, construct(cfg, "augment")
    names = ("normalize", "mean", "std") if theirs.normalize == ours.normalize == "dataset" else ("normalize",)
    differences = [
        f"augment.{name}={setting_text(getattr(theirs, name))} there, {setting_text(getattr(ours, name))} here"
        for name in names
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if differences:
        say(f"note: {source.path} was trained on images standardised otherwise: {'; '.join(differences)}")


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Put the config's key in front of what a lower room has to say."""
    try:
        yield
    except ValueError as error:
        raise ValueError(at(key, error)) from error


def say(line: str) -> None:
    """Print a line, in the first of several processes alone."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        printing.say(line)


def setting_text(value: Any) -> str:
    """As on the command line."""
    return f"[{','.join(f'{number:g}' for number in value)}]" if isinstance(value, tuple) else str(value)
