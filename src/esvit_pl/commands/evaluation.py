"""What ``esvit-knn`` and ``esvit-linear`` share, and the table of results at the end of ``esvit-pretrain``: the same
probes on the pretrained backbone and on what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from esvit_pl.configs import assemble, evaluated_images, trainers, weights
from esvit_pl.evaluation.baselines import Baselines, GreyHistogram, RawPixels
from esvit_pl.evaluation.names import CHANCE, PRETRAINED, PROBES, ROWS, is_accuracy, main_metric

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.data import ImageDataModule
    from esvit_pl.datasets import Splits
    from esvit_pl.evaluation import Evaluator
    from esvit_pl.runs.result import Result

Table = dict[str, dict[str, float]]
"""{"knn": {"chance": ..., "pretrained": ...}, "linear": {...}}, top-1 accuracies in 0-1."""


class Job(NamedTuple):
    """How a command measures a checkpoint's backbone."""

    probe: str
    """"knn" or "linear"."""
    module: Callable[[DictConfig, Backbone, ImageDataModule], LightningModule]
    measure: Callable[[DictConfig, Trainer, Any, ImageDataModule], Mapping[str, Any]]
    """Returns the metrics."""
    trains: bool = False
    """Whether the probe trains on augmented images."""


def evaluate(job: Job, cfg: DictConfig, images: Splits | None = None) -> Result:
    """The whole job of ``esvit-knn`` and ``esvit-linear``.

    Args:
        cfg: of the command, with ``paths.output_dir`` set.
        images: in place of ``cfg.dataset``.
    """
    from esvit_pl.runs import bad_images
    from esvit_pl.runs.folder import RunFolder
    from esvit_pl.runs.result import Result

    source = weights.evaluated(cfg)
    backbone = weights.frozen_backbone(cfg, source)
    lines = [evaluated_images.take_dataset(cfg, source, f"esvit-{job.probe}")] if images is None else []
    recipe, line = evaluated_images.preparation(cfg, source, trains=job.trains)
    evaluated_images.keep(cfg, recipe)
    data = assemble.datamodule(cfg, *assemble.images(cfg, images))
    module = job.module(cfg, backbone, data)
    trainer = trainers.make(cfg, data)
    run = RunFolder(cfg.paths.output_dir, writes=trainer.is_global_zero)
    run.describe(cfg)
    if run.writes:
        print("\n".join(filter(None, [*lines, line])), flush=True)
    with run.status(), bad_images.kept(run, data.dataset):
        metrics = {name: float(value) for name, value in job.measure(cfg, trainer, module, data).items()}
        run.update(**{job.probe: {PRETRAINED: metrics[main_metric(job.probe)]}}, metrics=metrics)
    if run.writes:
        print(report(metrics, run.path), flush=True)
    return Result(run.path, backbone.cpu(), Path(cfg.ckpt_path), metrics)


def report(metrics: dict[str, float], folder: object) -> str:
    """The accuracies in %, one a line, and where they are kept."""
    shown = {name: value for name, value in metrics.items() if is_accuracy(name)}
    width = max(map(len, shown))
    return "\n".join(
        ["", *(f"{name:<{width}}  {100 * value:5.1f}%" for name, value in shown.items()), "", f"{folder}/"]
    )


def check(cfg: DictConfig, backbone: Backbone, num_classes: int | None) -> None:
    """Refuse wrong settings of the probes before the training that they would throw away.

    Args:
        backbone: any of the kind that will be measured.
    """
    for name, evaluator in evaluators(cfg).items():
        with weights.naming(f"evaluation.{name}"):
            evaluator.check(backbone, num_classes)


def evaluators(cfg: DictConfig) -> dict[str, Evaluator]:
    """The evaluators that ``evaluation.probes`` names."""
    if isinstance(cfg.evaluation.probes, str):
        raise ValueError(f"evaluation.probes must be a list, such as [knn,linear], got {cfg.evaluation.probes}")
    known = sorted(str(name) for name, node in cfg.evaluation.items() if isinstance(node, DictConfig))
    unknown = [name for name in cfg.evaluation.probes if name not in known]
    if unknown:
        raise ValueError(f"evaluation.probes holds {', '.join(unknown)}; there are {' and '.join(known)}")
    return {name: assemble.construct(cfg, f"evaluation.{name}") for name in cfg.evaluation.probes}


def measure(
    cfg: DictConfig, splits: Splits, recipe: Recipe, pretrained: Backbone, beside: Mapping[str, Backbone]
) -> Table:
    """Run ``evaluation.probes`` on the pretrained backbone and on what it is compared with.

    One data module and one Trainer serve all rows and probes.

    Args:
        beside: the same backbone with other weights, by a name in `names.ROWS`; nothing leaves all baselines out.
    """
    from esvit_pl.modules import Evaluation

    probes = evaluators(cfg)
    others: dict[str, Backbone] = {}
    if beside:
        raw_pixels = RawPixels(min(recipe.eval_crop, 32), channels=recipe.channels)
        others = {"raw_pixels": raw_pixels, "histogram": GreyHistogram(), **beside}
    data = assemble.datamodule(cfg, splits, recipe, train="supervised")
    module = Evaluation(pretrained, Baselines(probes, others))
    found = trainers.quiet(cfg).validate(module, data, verbose=False)[0]
    chance = {CHANCE: 1 / (data.num_classes or 1)} if beside else {}
    return {probe: chance | {row: found[f"{probe}/{row}"] for row in (*others, PRETRAINED)} for probe in probes}


def optimized(cfg: DictConfig, values: Mapping[str, float]) -> float | None:
    """The metric that a sweeper is to improve, ``optimized_metric``; None if none is named."""
    name = cfg.optimized_metric
    if name is not None and name not in values:
        raise ValueError(f"optimized_metric={name} was not measured; there are {', '.join(sorted(values))}")
    return None if name is None else values[name]


def as_text(table: Mapping[str, Mapping[str, float]]) -> str:
    """The table as lines for a terminal, accuracies in %."""
    rows = [row for row in ROWS if any(row in column for column in table.values())]
    width = max(len(ROWS[row].table) for row in rows)
    lines = [" " * width + "".join(f"{PROBES.get(probe, probe):>10}" for probe in table)]
    for row in rows:
        cells = (f"{100 * column[row]:9.1f}%" if row in column else " " * 10 for column in table.values())
        lines.append(f"{ROWS[row].table:<{width}}" + "".join(cells))
    return "\n".join(lines)
