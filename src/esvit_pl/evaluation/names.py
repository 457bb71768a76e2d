"""What measures are called in logs and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esvit_pl.metrics.knn import TopK


def knn_metrics(prefix: str, results: Iterable[tuple[str | None, dict[int, TopK]]]) -> dict[str, float]:
    """Results of k-NN, feature by feature, as metrics.

    The first feature's first k is ``knn/top1`` and ``knn/top5``, whatever the two are: the name to monitor. Everything
    else says what it is, ``knn/<feature>/k<k>/top1``, without ``<feature>/`` where there is only one, unnamed.

    Args:
        prefix: "knn".
        results: (name of the feature, {k: accuracies}), the main feature first.
    """
    metrics: dict[str, float] = {}
    for feature, accuracies in results:
        for k, accuracy in accuracies.items():
            name = f"{prefix}/{feature}/k{k}" if feature else f"{prefix}/k{k}"
            metrics |= _pair(name if metrics else prefix, accuracy)
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


def _pair(name: str, accuracy: Sequence[float]) -> dict[str, float]:
    return {f"{name}/top1": accuracy[0], f"{name}/top5": accuracy[1]}
