"""What the commands share that measure a checkpoint: its frozen backbone, and the images that measure it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from esvit_pl.configs import assemble, evaluated_images, trainers, weights
from esvit_pl.configs.command_line import Task, command, requires
from esvit_pl.evaluation.names import is_accuracy
from esvit_pl.printing import say

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.checkpoints import Checkpoint
    from esvit_pl.commands.results import Measured
    from esvit_pl.data import ImageDataModule
    from esvit_pl.datasets import ImageDataset, Splits
    from esvit_pl.evaluation import FeatureCache
    from esvit_pl.runs.result import Result


class Subject(NamedTuple):
    """What is measured, and on which images."""

    source: Checkpoint
    backbone: Backbone
    splits: Splits
    recipe: Recipe
    data: ImageDataModule
    trainer: Trainer


class Job(NamedTuple):
    """How a command measures a checkpoint's backbone."""

    probe: str
    """"knn" or "linear"."""
    prepare: Callable[[DictConfig, Backbone, ImageDataModule], Any]
    """Makes the part that measures, and refuses wrong settings before the run begins."""
    measure: Callable[[DictConfig, Any, Subject], Measured]
    trains: bool = False
    """Whether it trains on augmented images."""


def command_on_checkpoint(name: str, summary: str, examples: Sequence[str]) -> Callable[[Task], Callable[[], None]]:
    """`command` for ``esvit-<name>``, which measures ``ckpt_path=`` and refuses the experiments of a training."""
    program = f"esvit-{name}"
    return command(
        name,
        summary=summary,
        examples=examples,
        needs=requires(program, "ckpt_path"),
        refuses=partial(evaluated_images.refuse_experiment, program),
    )


def evaluate(job: Job, cfg: DictConfig, images: Splits | None = None) -> Result:
    """The whole job of ``esvit-knn`` and ``esvit-linear``.

    Args:
        cfg: of the command, with ``paths.output_dir`` set.
        images: in place of ``cfg.dataset``.
    """
    from esvit_pl.commands import results
    from esvit_pl.runs import bad_images
    from esvit_pl.runs.folder import RunFolder
    from esvit_pl.runs.result import Result

    trainers.check_devices(cfg)
    source = weights.evaluated(cfg)
    backbone = weights.frozen_backbone(cfg, source)
    lines = [evaluated_images.take_dataset(cfg, source, f"esvit-{job.probe}")] if images is None else []
    recipe, line = evaluated_images.preparation(cfg, source, trains=job.trains)
    assemble.check_channels(recipe, backbone)
    evaluated_images.keep(cfg, recipe)
    splits, _ = assemble.images(cfg, images)
    data = assemble.datamodule(cfg, splits, recipe, **results.supervised(splits))
    part = job.prepare(cfg, backbone, data)
    trainer = trainers.make(cfg, data)
    run = RunFolder(cfg.paths.output_dir, writes=trainer.is_global_zero)
    run.describe(cfg)
    weights.say("\n".join(filter(None, [*lines, line])))
    if job.trains:
        results.fit_batch(data, trainer)
    with run.status(), trainers.watched(trainer, run), bad_images.kept(run, splits):
        measured = job.measure(cfg, part, Subject(source, backbone, splits, recipe, data, trainer))
        about = measured.about(cfg, dict.fromkeys(measured.table, cfg.module), recipe)
        run.update(**measured.table, metrics=measured.metrics, evaluation=about)
    if run.writes:
        say("\n".join(["", measured.text(), report(measured.metrics, run.path)]))
    return Result(run.path, backbone.cpu(), Path(cfg.ckpt_path), measured.metrics)


def refuse_unlabelled(program: str, data: ImageDataModule) -> None:
    """Raise a ValueError if the images have no labels; it says what can be measured without them."""
    if not data.has_labels:
        raise ValueError(
            f"{program} needs labels, and the images have none: put the images into one folder for each class. Without "
            "labels, esvit-knn evaluator@module=rankme (or effective_rank, region_diversity) measures the features"
        )


def untrained(cfg: DictConfig, source: Checkpoint, backbone: Backbone) -> Backbone:
    """The backbone with the weights that a pretraining begins with, drawn with the seed of the checkpoint's run."""
    import torch

    from esvit_pl.backbones import build
    from esvit_pl.isolation import same_random_state

    with same_random_state():
        torch.manual_seed((source.config or {}).get("seed", cfg.seed))
        return build(**backbone.spec).eval().requires_grad_(False)


def origin(cfg: DictConfig, backbone: Backbone, recipe: Recipe, *images: ImageDataset) -> dict[str, Any]:
    """What the features of these images depend on."""
    from esvit_pl.fingerprint import fingerprint
    from esvit_pl.specs import plain

    return {
        "weights": fingerprint(backbone),
        "preparation": plain({name: getattr(recipe, name) for name in evaluated_images.EVALUATION}),
        "data": [digest for each in images for digest in (each.digest(), each.content_digest())],
        "precision": str(cfg.trainer.precision),
    }


def feature_cache(cfg: DictConfig, encoder: Backbone, recipe: Recipe, splits: Splits) -> FeatureCache | None:
    """The folder ``cache=`` for features of bank and query; None if none is named, and in commands without one."""
    from esvit_pl.evaluation import FeatureCache

    if cfg.get("cache") is None:
        return None
    parts = {"bank": splits.bank, "query": splits.query}
    return FeatureCache(
        cfg.cache,
        {which: {**origin(cfg, encoder, recipe, each), "images": len(each)} for which, each in parts.items()},
    )


def report(metrics: Mapping[str, float], folder: object) -> str:
    """A line for each accuracy in %, or for each metric if none is an accuracy. The last line is the run's folder."""
    metrics = {name: value for name, value in metrics.items() if is_accuracy(name)} or metrics
    width = max(map(len, metrics))
    shown = {name: f"{100 * value:5.1f}%" if is_accuracy(name) else f"{value:6.4g}" for name, value in metrics.items()}
    return "\n".join(["", *(f"{name:<{width}}  {text}" for name, text in shown.items()), "", f"{folder}/"])


def optimized(cfg: DictConfig, values: Mapping[str, float]) -> float | None:
    """The metric that a sweeper is to improve, ``optimized_metric``; None if none is named."""
    name = cfg.optimized_metric
    if name is not None and name not in values:
        raise ValueError(f"optimized_metric={name} was not measured; there are {', '.join(sorted(values))}")
    return None if name is None else values[name]
