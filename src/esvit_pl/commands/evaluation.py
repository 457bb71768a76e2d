"""The table of results: the same probes on the pretrained backbone and on what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from esvit_pl.configs import assemble, trainers, weights
from esvit_pl.evaluation.baselines import Baselines, GreyHistogram, RawPixels
from esvit_pl.evaluation.names import CHANCE, PRETRAINED, PROBES, ROWS

if TYPE_CHECKING:
    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.datasets import Splits
    from esvit_pl.evaluation import Evaluator

Table = dict[str, dict[str, float]]
"""{"knn": {"chance": ..., "pretrained": ...}, "linear": {...}}, top-1 accuracies in 0-1."""


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
