"""What measures are called in logs and files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def _pair(name: str, accuracy: Sequence[float]) -> dict[str, float]:
    return {f"{name}/top1": accuracy[0], f"{name}/top5": accuracy[1]}
