"""What rows of results and metrics are called, in files, logs, tables and pictures. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from esvit_pl.metrics.knn import TopK

KNN_TOP1, LINEAR_TOP1 = "knn/top1", "linear/top1"
PROBE_LOSS, FINETUNE_LOSS = "linear/train_loss", "finetune/train_loss"
FINETUNE_TOP1, FINETUNE_EMA_TOP1 = "finetune/top1", "finetune/ema_top1"
TRAINING_LOSSES = "train/*_loss"
"""Pattern of the losses that an objective logs, one for each of its terms."""

PROBES = {
    "knn": "k-NN",
    "linear": "linear",
    "logistic": "logistic regression",
    "few_shot": "few-shot",
    "finetune": "fine-tuning",
}
"""Probe, as in results.json and in the config, -> its title. A probe of somebody else's is called by its name."""


COUNTED = {"top1": "accuracy", "per_class": "mean per class", "roc_auc": "ROC AUC", "map11": "11-point mAP"}
"""How a data set counts right answers, as in `metrics.measure`, -> its title."""

TITLES = {
    "effective_rank": "effective rank",
    "rankme": "RankMe",
    "lidar": "LiDAR",
    "region_diversity": "region diversity",
    "per_block": "rank of the last block",
    "correspondence": "region correspondence",
    "retrieval": "region retrieval",
    "segmentation_knn": "k-NN mIoU",
    "segmentation_linear": "linear mIoU",
    "segmentation_in_context": "in-context mIoU",
    "keypoints": "keypoints PCK",
    **PROBES,
}


class Titles(NamedTuple):
    """How one row of results is called."""

    table: str
    figure: str
    card: str
    """In the model card of the pretrained backbone, who speaks of itself."""


CHANCE, UNTRAINED, INITIAL = "chance", "untrained", "initial"
PRETRAINED, PRETRAINED_SUBSET = "pretrained", "pretrained_subset"
FROM_SCRATCH = "from_scratch"
ROWS = {
    CHANCE: Titles("chance", "chance", "chance"),
    "raw_pixels": Titles("raw pixels", "raw pixels", "raw pixels"),
    "histogram": Titles("grey-level histogram", "grey histogram", "grey-level histogram"),
    UNTRAINED: Titles("untrained backbone", "untrained", "the same before training"),
    INITIAL: Titles("before this training", "before", "what this training began with"),
    FROM_SCRATCH: Titles("trained from scratch", "from scratch", "the same trained from scratch"),
    PRETRAINED_SUBSET: Titles("pretrained, same images", "pretrained, subset", "this backbone, on the same images"),
    PRETRAINED: Titles("pretrained backbone", "pretrained", "this backbone"),
}
"""Rows of results.json in the order in which they are shown."""


def figure_title(row: str) -> str:
    """What a row is called in pictures; a row of somebody else's is called by its name."""
    return ROWS[row].figure if row in ROWS else row


def main_metric(probe: str) -> str:
    """The metric of a probe that results show: ``knn/top1``."""
    return f"{probe}/top1"


def untrained(metric: str) -> str:
    """What a metric of the backbone before training is called in tables of runs: ``untrained/knn/top1``."""
    return f"{UNTRAINED}/{metric}"


def is_accuracy(metric: str) -> bool:
    """Whether a metric is a fraction of right answers, shown in %: ``knn/top1``, ``linear/lr0.1/top5``, ``top1``; or
    what other tasks have in its place: ``segmentation_knn/miou``, ``keypoints/pck``, ``logistic/map11``."""
    return metric.rpartition("/")[2].startswith(("top", "miou", "pck", "per_class", "roc_auc", "map11"))


def is_share_of_images(metric: str) -> bool:
    """Whether an accuracy is the share of images that are right, of which chance and Wilson's interval are known."""
    return metric.rpartition("/")[2].startswith("top")


def is_training_loss(metric: str) -> bool:
    """Whether a metric is a loss that an objective logs: ``train/view_loss``, ``train/contrastive_loss``, ..."""
    return metric.startswith("train/") and metric.endswith("_loss")


def loss_title(metric: str) -> str:
    """``train/view_loss`` as "view loss"; other names stay."""
    return metric.removeprefix("train/").replace("_", " ") if is_training_loss(metric) else metric


def block_metric(measure: str, block: int) -> str:
    """What a measure of one block is called: ``rankme/block2``; blocks are counted from 1."""
    return f"{measure}/block{block}"


def by_block(metrics: Mapping[str, float]) -> dict[int, dict[str, float]]:
    """{block: {measure: number}} of the metrics that `block_metric` has named, the first block first.

    >>> by_block({"rankme/block2": 8.0, "lidar/block2": 5.0, "rankme/block1": 9.0, "knn/top1": 0.5})
    {1: {'rankme': 9.0}, 2: {'rankme': 8.0, 'lidar': 5.0}}
    """
    found: dict[int, dict[str, float]] = {}
    for metric, value in metrics.items():
        measure, _, block = metric.rpartition("/block")
        if measure and block.isdecimal() and len(block) < 6:  # a name may come from a stranger's file
            found.setdefault(int(block), {})[measure] = value
    return dict(sorted(found.items()))


def knn_metrics(
    accuracies: Mapping[int, TopK], prefix: str = "knn", feature: str | None = None, *, main: bool = True
) -> dict[str, float]:
    """k-NN accuracies of one feature as metrics.

    The first k of the main feature is ``knn/top1`` and ``knn/top5``: the names to monitor. Everything else says what it
    is: ``knn/<feature>/k<k>/top1``, without ``<feature>/`` for a feature without a name.

    Args:
        accuracies: {k: accuracies}.
        feature: its name, where several are measured.
        main: whether it is the first one of several.
    """
    place = f"{prefix}/{feature}" if feature else prefix
    names = [f"{place}/k{k}" for k in accuracies]
    if main:
        names[0] = prefix
    pairs = zip(names, accuracies.values(), strict=True)
    return {f"{name}/top{top}": value for name, pair in pairs for top, value in zip((1, 5), pair, strict=True)}


def few_shot_metrics(accuracies: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """Top-1 accuracies from n images of each class as metrics: the mean over the draws, and their standard deviation
    where there are several.

    The first n is ``few_shot/top1`` and ``few_shot/spread``, others are ``few_shot/n<n>/top1``, ...

    Args:
        accuracies: {n: one accuracy for each draw}.
    """
    metrics: dict[str, float] = {}
    places = ["few_shot", *(f"few_shot/n{n}" for n in list(accuracies)[1:])]
    for place, values in zip(places, accuracies.values(), strict=True):
        metrics[f"{place}/top1"] = fmean(values)
        if len(values) > 1:
            metrics[f"{place}/spread"] = stdev(values)
    return metrics


def linear_metrics(prefix: str, results: Iterable[tuple[str | None, Mapping[float, TopK]]]) -> dict[str, float]:
    """Results of linear heads, feature by feature, as metrics.

    ``linear/top1`` and ``linear/top5`` are those of the first feature's best head: the names to monitor. Where there
    are several heads, each one's top-1 is ``linear/<feature>/lr<lr>/top1``, without ``<feature>/`` where there is only
    one, unnamed. Of several learning rates ``linear/best_lr`` is the one of the first feature's best head.

    Args:
        prefix: "linear".
        results: (name of the feature, {lr: accuracies}), the main feature first.
    """
    rows = list(results)
    _, main = rows[0]
    best = max(main, key=lambda lr: main[lr].top1)
    metrics = {f"{prefix}/top1": main[best].top1, f"{prefix}/top5": main[best].top5}
    if len(rows) > 1 or len(main) > 1:
        for feature, accuracies in rows:
            place = f"{prefix}/{feature}" if feature else prefix
            metrics |= {f"{place}/lr{lr:g}/top1": accuracy.top1 for lr, accuracy in accuracies.items()}
    if len(main) > 1:
        metrics[f"{prefix}/best_lr"] = best
    return metrics


def best_of(accuracies: Sequence[TopK]) -> int:
    """The place of the highest top-1, the first one of equals."""
    return max(range(len(accuracies)), key=lambda place: accuracies[place].top1)


def probe_metrics(
    choices: Sequence[tuple[int, float, str]], on_query: Sequence[TopK], rehearsed: Sequence[TopK] | None = None
) -> dict[str, float]:
    """Results of the linear classifiers of `evaluation.Linear` as metrics; see there what each one means.

    Args:
        choices: (blocks, lr, pooling) of each classifier.
        on_query: accuracy of each on the query.
        rehearsed: accuracy of each one's rehearsal on the images that are held out; None: nothing is.
    """
    chosen = best_of(rehearsed or on_query)
    metrics = {"linear/top1": on_query[chosen].top1, "linear/top5": on_query[chosen].top5}
    if len(choices) == 1:
        return metrics
    if rehearsed is not None:
        metrics["linear/best_on_query/top1"] = on_query[best_of(on_query)].top1
        metrics["linear/held_out/top1"] = rehearsed[chosen].top1
    several_blocks = len({blocks for blocks, _, _ in choices}) > 1
    poolings = list(dict.fromkeys(pooling for _, _, pooling in choices))
    for (blocks, lr, pooling), accuracy in zip(choices, on_query, strict=True):
        place = f"{f'blocks{blocks}/' * several_blocks}{f'{pooling}/' * (len(poolings) > 1)}"
        metrics[f"linear/{place}lr{lr:g}/top1"] = accuracy.top1
    metrics["linear/best_lr"] = choices[chosen][1]
    metrics |= {"linear/best_blocks": choices[chosen][0]} if several_blocks else {}
    return metrics | ({"linear/best_pooling": poolings.index(choices[chosen][2])} if len(poolings) > 1 else {})
