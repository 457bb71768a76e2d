"""The table of results: the same probes on the pretrained backbone and on what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from esvit_pl.backbones import Backbone
from esvit_pl.configs import assemble
from esvit_pl.evaluation.baselines import GreyHistogram, RawPixels
from esvit_pl.isolation import undisturbed

if TYPE_CHECKING:
    from esvit_pl.augment import Recipe
    from esvit_pl.datasets import Splits

Table = dict[str, dict[str, float]]
"""{"knn": {"chance": ..., "pretrained": ...}, "linear": {...}}, top-1 accuracies in 0-1."""


def check(cfg: DictConfig, backbone: Backbone, num_classes: int | None) -> None:
    """Refuse wrong settings of the probes before the training that they would throw away.

    Args:
        backbone: any of the kind that will be measured; it is left as it is.
    """
    if isinstance(cfg.evaluation.probes, str):
        raise ValueError(f"evaluation.probes must be a list, such as [knn,linear], got {cfg.evaluation.probes}")
    unknown = [name for name in cfg.evaluation.probes if name not in PROBES]
    if unknown:
        raise ValueError(f"evaluation.probes holds {', '.join(unknown)}; there are {' and '.join(PROBES)}")
    if cfg.evaluation.linear_epochs < 1:
        raise ValueError(f"evaluation.linear_epochs must be 1 or more, got {cfg.evaluation.linear_epochs}")
    parts = {"linear": {"num_classes": num_classes}}
    with undisturbed(backbone):
        for name in cfg.evaluation.probes:
            assemble.probe(cfg, f"evaluation.{name}", backbone, **parts.get(name, {}))


def measure(
    cfg: DictConfig, splits: Splits, recipe: Recipe, pretrained: Backbone, beside: Mapping[str, Backbone]
) -> Table:
    """Run ``evaluation.probes`` on the pretrained backbone and on what it is compared with.

    Args:
        beside: the same backbone with other weights, by a name in `NAMES`; nothing leaves all baselines out.
    """
    rows: dict[str, Backbone] = {}
    if beside:
        rows["raw_pixels"] = RawPixels(min(recipe.eval_crop, 32), channels=recipe.channels)
        rows["histogram"] = GreyHistogram()
    rows |= {**beside, "pretrained": pretrained}
    num_classes = assemble.datamodule(cfg, splits, recipe).num_classes or 1
    table: Table = {}
    for probe in cfg.evaluation.probes:
        table[probe] = {} if not beside else {"chance": 1 / num_classes}
        for row, backbone in rows.items():
            table[probe][row] = PROBES[probe](cfg, splits, recipe, backbone)
    return table


def knn_accuracy(cfg: DictConfig, splits: Splits, recipe: Recipe, backbone: Backbone) -> float:
    """Top-1 of the weighted k-NN on a frozen backbone."""
    data = assemble.datamodule(cfg, splits, recipe)
    module = assemble.probe(cfg, "evaluation.knn", backbone)
    return float(assemble.quiet_trainer(cfg).validate(module, data, verbose=False)[0]["knn/top1"])


def linear_accuracy(cfg: DictConfig, splits: Splits, recipe: Recipe, backbone: Backbone) -> float:
    """Top-1 of a linear probe trained on a frozen backbone: the best head's after the last epoch."""
    data = assemble.datamodule(cfg, splits, recipe, train="supervised")
    assemble.seed_weights(cfg)  # every row's heads start alike
    module = assemble.probe(cfg, "evaluation.linear", backbone, num_classes=data.num_classes)
    epochs = cfg.evaluation.linear_epochs
    assemble.quiet_trainer(cfg, max_epochs=epochs, limit_val_batches=0).fit(module, datamodule=data)
    return float(assemble.quiet_trainer(cfg).validate(module, datamodule=data, verbose=False)[0]["linear/top1"])


def optimized(cfg: DictConfig, values: Mapping[str, float]) -> float | None:
    """The metric that a sweeper is to improve, ``optimized_metric``; None if none is named."""
    name = cfg.optimized_metric
    if name is not None and name not in values:
        raise ValueError(f"optimized_metric={name} was not measured; there are {', '.join(sorted(values))}")
    return None if name is None else values[name]


PROBES = {"knn": knn_accuracy, "linear": linear_accuracy}
NAMES = {
    "chance": "chance",
    "raw_pixels": "raw pixels",
    "histogram": "grey-level histogram",
    "untrained": "untrained backbone",
    "initial": "before this training",
    "pretrained": "pretrained backbone",
}


def as_text(table: Mapping[str, Mapping[str, float]]) -> str:
    """The table as lines for a terminal, accuracies in %."""
    titles = {"knn": "k-NN", "linear": "linear"}
    rows = [row for row in NAMES if any(row in column for column in table.values())]
    width = max(len(NAMES[row]) for row in rows)
    lines = [" " * width + "".join(f"{titles[probe]:>10}" for probe in table)]
    for row in rows:
        cells = (f"{100 * column[row]:9.1f}%" if row in column else " " * 10 for column in table.values())
        lines.append(f"{NAMES[row]:<{width}}" + "".join(cells))
    return "\n".join(lines)
