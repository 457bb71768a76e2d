"""The table of results: the same probes on the pretrained backbone and on what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esvit_pl.configs import assemble, evaluated_images, trainers, weights
from esvit_pl.configs.kept_config import shown
from esvit_pl.datasets import Splits, Subset
from esvit_pl.evaluation import Baselines, GreyHistogram, RawPixels
from esvit_pl.evaluation.interval import FEW, wilson
from esvit_pl.evaluation.label_free import evenly
from esvit_pl.evaluation.names import (
    CHANCE,
    PRETRAINED,
    PRETRAINED_SUBSET,
    ROWS,
    TITLES,
    is_accuracy,
    is_share_of_images,
    main_metric,
)
from esvit_pl.specs import plain

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.data import ImageDataModule
    from esvit_pl.evaluation import Evaluator

Table = dict[str, dict[str, float]]
"""{"knn": {"chance": ..., "pretrained": ...}, "linear": {...}}, the first number of each probe."""


# -- which probes


def probes_of(cfg: DictConfig, *, labelled: bool) -> dict[str, Evaluator]:
    """The evaluators of ``evaluation.probes``; on images without labels those of them that need none, and
    ``evaluation.without_labels`` in place of the others."""
    if isinstance(cfg.evaluation.probes, str):
        raise ValueError(f"evaluation.probes must be a list, such as [knn,linear], got {cfg.evaluation.probes}")
    asked = {name: _evaluator(cfg, name, "probes") for name in cfg.evaluation.probes}
    if labelled or not asked:
        return asked
    free = {name: probe for name, probe in asked.items() if not getattr(probe, "needs_labels", True)}
    others = {name: _evaluator(cfg, name, "without_labels") for name in cfg.evaluation.without_labels}
    return free | others


def _evaluator(cfg: DictConfig, name: str, key: str) -> Evaluator:
    known = sorted(str(other) for other, node in cfg.evaluation.items() if isinstance(node, DictConfig))
    if name not in known:
        raise ValueError(f"evaluation.{key} holds {name}; there are {', '.join(known[:-1])} and {known[-1]}")
    evaluator: Evaluator = assemble.construct(cfg, f"evaluation.{name}")
    return evaluator


def check(probes: Mapping[str, Evaluator], backbone: Backbone, num_classes: int | None) -> None:
    """Refuse wrong settings of the probes before the training that they would throw away.

    Args:
        backbone: any of the kind that will be measured.
    """
    for name, evaluator in probes.items():
        with weights.naming(f"evaluation.{name}"):
            evaluator.check(backbone, num_classes)


def baselines_mode(cfg: DictConfig) -> bool | str:
    """``evaluation.baselines``."""
    mode = cfg.evaluation.baselines
    if mode not in (True, False, "auto"):
        raise ValueError(f"evaluation.baselines must be true, false or auto, got {mode}")
    return bool(mode) if mode != "auto" else "auto"


# -- on which images


@dataclass(frozen=True)
class Sample(Splits):
    """A part of a bank and a query, evenly chosen."""

    of: Splits | None = None

    def describe(self) -> str:
        assert self.of is not None
        return (
            f"baselines and measures without labels: {len(self.bank):,} of {len(self.of.bank):,} images of the bank, "
            f"{len(self.query):,} of {len(self.of.query):,} of the query (evaluation.baseline_images)"
        )


def sample(splits: Splits, cfg: DictConfig) -> Splits:
    """``evaluation.baseline_images`` of the images; the splits themselves where these are not more."""
    bank, query = splits.bank, splits.query
    most_bank, most_query = cfg.evaluation.baseline_images
    if len(bank) <= most_bank and len(query) <= most_query:
        return splits
    parts = Subset(bank, evenly(len(bank), most_bank)), Subset(query, evenly(len(query), most_query))
    return Sample(*parts, classes=splits.classes, of=splits)


def supervised(splits: Splits) -> dict[str, Any]:
    """What a data module must be told to train probes, where there are labels."""
    return {"train": "supervised"} if splits.has_labels else {"train": "multi_crop", "rand_augment": None}


def fit_batch(data: ImageDataModule, trainer: Trainer) -> None:
    """Where a probe has fewer training images than a batch, make the batch as large as they are, and say so."""
    most = len(data.train_images) // (trainer.world_size * trainer.accumulate_grad_batches)
    if data.train == "supervised" and 0 < most < data.batch_size:
        weights.say(f"datamodule.batch_size={data.batch_size} is more than the bank holds: the probe takes {most}")
        data.batch_size = most


# -- measuring


@dataclass(frozen=True)
class Measured:
    """What was found out about a backbone."""

    table: Table
    metrics: dict[str, float]
    """Everything that the probes say of the pretrained backbone."""
    names: dict[str, str]
    """{probe: the metric that the table shows}."""
    splits: Splits
    few: Splits
    """On which the rows other than the pretrained backbone's were measured."""

    @property
    def final(self) -> dict[str, float]:
        """The pretrained backbone's numbers as metrics: ``knn/top1``, ``rankme``."""
        names = {probe: main_metric(probe) if is_share_of_images(name) else name for probe, name in self.names.items()}
        return {names[probe]: column[PRETRAINED] for probe, column in self.table.items()}

    @property
    def intervals(self) -> dict[str, dict[str, list[float]]]:
        """95 % intervals of the accuracies."""
        return {
            probe: {
                row: list(wilson(value, len((self.splits if row == PRETRAINED else self.few).query)))
                for row, value in column.items()
                if row != CHANCE
            }
            for probe, column in self.table.items()
            if is_share_of_images(self.names[probe])
        }

    def about(self, cfg: DictConfig, probes: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
        """The entry ``evaluation`` of results.json.

        Args:
            probes: {name: its node in the config}.
        """
        node = cfg.get("dataset")
        dataset = {"name": type(self.splits.train).__name__} if node is None else {"name": evaluated_images.name(node)}
        dataset |= {} if node is None else _settings(node)
        bank, query = len(self.splits.bank), len(self.splits.query)
        settings = {name: _settings(node) for name, node in probes.items()}
        for node in settings.values():
            if "k" in node:
                ks = node["k"] if isinstance(node["k"], list) else [node["k"]]
                node["k"] = [min(k, bank) for k in ks]
        names = evaluated_images.EVALUATION
        compared = any(row != PRETRAINED for column in self.table.values() for row in column)
        return {
            "dataset": dataset,
            "images": {"train": len(self.splits.train), "bank": bank, "query": query},
            "classes": num_classes(self.splits),
            "preparation": plain({name: getattr(recipe, name) for name in names}),
            "probes": settings,
            "baselines": {"bank": len(self.few.bank), "query": len(self.few.query)} if compared else None,
            "intervals": self.intervals,
        }

    def text(self) -> str:
        """The table for a terminal: accuracies in % with their intervals, and on how many images."""
        bank, query = len(self.splits.bank), len(self.splits.query)
        images = f"{query:,} query images, {bank:,} in the bank"
        if not self.splits.has_labels:
            images = f"{bank + query:,} images, no labels"
        lines = [f"{images}; ranges are 95 % intervals" if self.intervals else images]
        if self.intervals and query < FEW:
            lines.append(f"{query} query images are few: rows whose ranges overlap may be equally good")
        if any(PRETRAINED_SUBSET in column for column in self.table.values()):
            few = f"{len(self.few.query):,} query images and {len(self.few.bank):,} of the bank"
            lines.append(f"rows above the last: {few}; evaluation.baselines=true takes all")
        return "\n".join([*lines, as_text(self.table, self.names, self.intervals)])


def _settings(node: Any) -> dict[str, Any]:
    return {name: value for name, value in shown(node).items() if name != "_target_"}


def num_classes(splits: Splits) -> int | None:
    """How many classes there are; None without labels."""
    labels = splits.train.labels
    return len(splits.classes) if splits.classes else None if labels is None else max(labels) + 1


def measure(
    cfg: DictConfig,
    splits: Splits,
    recipe: Recipe,
    pretrained: Backbone,
    probes: Mapping[str, Evaluator],
    beside: Mapping[str, Backbone],
    *,
    trainer: Trainer | None = None,
    looks: Mapping[str, Evaluator] | None = None,
) -> Measured:
    """Ask the probes about the pretrained backbone and what it is compared with.

    ``evaluation.baselines``: true measures every row on all images, one after the other; auto measures baselines on
    ``evaluation.baseline_images`` at most, all in one pass, with the pretrained backbone beside them, and has none for
    probes that train. Without labels everything is measured on so many images.

    Args:
        beside: the same backbone with other weights, by a name in `names.ROWS`; nothing leaves all baselines out.
        trainer: for the pretrained backbone; by default a quiet one.
        looks: {row: evaluator}, for what they find on the images on which rows are compared (`Measured.few`).
    """
    auto = baselines_mode(cfg) == "auto"
    few = sample(splits, cfg) if auto or not splits.has_labels else splits
    if not splits.has_labels:
        splits = few
    others = dict(beside)
    if beside and splits.has_labels:
        raw_pixels = RawPixels(min(recipe.eval_crop, 32), channels=recipe.channels)
        others = {"raw_pixels": raw_pixels, "histogram": GreyHistogram(), **beside}
    compared = {name: probe for name, probe in probes.items() if not (auto and getattr(probe, "trains", False))}
    alone = {name: probe for name, probe in probes.items() if name not in compared}
    apart = bool(few is not splits and others and compared)  # rows are compared on a part of the images
    whole = Baselines(
        compared, others if few is splits else {}, alone=alone, looks=None if apart else looks, together=auto
    )
    found = subset = _validated(cfg, trainer or trainers.quiet(cfg), splits, recipe, pretrained, whole)
    if apart:
        part = Baselines(compared, others, looks=looks, together=True)
        subset = _validated(cfg, trainers.quiet(cfg), few, recipe, pretrained, part)
    table: Table = {}
    for probe in probes:
        column: dict[str, float] = {}
        if others and is_share_of_images(whole.metrics[probe]):
            column[CHANCE] = 1 / (num_classes(splits) or 1)
        if others and probe in compared:
            column |= {row: subset[f"{probe}/{row}"] for row in others}
            if subset is not found:
                column[PRETRAINED_SUBSET] = subset[f"{probe}/{PRETRAINED}"]
        table[probe] = column | {PRETRAINED: found[f"{probe}/{PRETRAINED}"]}
    cells = {f"{probe}/{row}" for probe in probes for row in (PRETRAINED, *others)}
    metrics = {name: value for name, value in found.items() if name not in cells}
    return Measured(table, metrics, {probe: whole.metrics[probe] for probe in probes}, splits, few if apart else splits)


def _validated(
    cfg: DictConfig, trainer: Trainer, splits: Splits, recipe: Recipe, encoder: Backbone, evaluator: Baselines
) -> Mapping[str, float]:
    from esvit_pl.commands.evaluation import feature_cache
    from esvit_pl.modules import Evaluation

    data = assemble.datamodule(cfg, splits, recipe, **supervised(splits))
    if any(getattr(probe, "trains", False) for probe in evaluator.all.values()):
        fit_batch(data, trainer)
    cache = feature_cache(cfg, encoder, recipe, splits)
    return trainer.validate(Evaluation(encoder, evaluator, cache=cache), data, verbose=False)[0]


def as_text(
    table: Mapping[str, Mapping[str, float]],
    names: Mapping[str, str] | None = None,
    intervals: Mapping[str, Mapping[str, list[float]]] | None = None,
) -> str:
    """The table as lines for a terminal, accuracies in %.

    Args:
        names: {probe: its metric}; a probe without one is an accuracy.
        intervals: {probe: {row: (low, high)}}.
    """
    rows = [row for row in ROWS if any(row in column for column in table.values())]
    width = max(len(ROWS[row].table) for row in rows)
    lines = [f"{title:<{width}}" for title in ("", *(ROWS[row].table for row in rows))]
    for probe, column in table.items():
        title, ranges = TITLES.get(probe, probe), (intervals or {}).get(probe, {})
        in_percent = is_accuracy((names or {}).get(probe, "top1"))
        cells = [title, *(_number(column.get(row), in_percent) for row in rows)]
        beside = ["", *(_range(ranges.get(row)) for row in rows)]
        room, more = max(10, len(title) + 2), 12 if ranges else 0
        lines = [f"{line}{cell:>{room}}{text:>{more}}" for line, cell, text in zip(lines, cells, beside, strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float | None, in_percent: bool) -> str:
    return "" if value is None else f"{100 * value:.1f}%" if in_percent else f"{value:.3g}"


def _range(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"{100 * bounds[0]:.1f}-{100 * bounds[1]:.1f}"
