"""Weighted k-NN as an evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from esvit_pl.distributed import gather_uneven
from esvit_pl.evaluation.accuracy import accuracies_over_ranks
from esvit_pl.evaluation.data import EvaluationData
from esvit_pl.evaluation.features import Extracted, needed_labels
from esvit_pl.evaluation.interface import Evaluator, Kind
from esvit_pl.evaluation.names import knn_metrics
from esvit_pl.metrics.knn import TopK, as_ks, check_temperature, knn_correct
from esvit_pl.printing import say_once


class KNN(Evaluator):
    """Weighted k-NN accuracy of pooled features (`metrics.knn`; docs/recipes.md, "Evaluation").

    Images of the bank vote on those of the query; ``knn/top1`` and ``knn/top5`` are the fractions that are right, for
    the first k; further k are ``knn/k<k>/top1``. Bank features are gathered from all ranks, and every rank classifies
    its own query images.

    >>> import torch
    >>> from esvit_pl.evaluation import KNN, EvaluationData
    >>> images, labels = torch.eye(6).reshape(6, 1, 2, 3), torch.arange(6) % 2
    >>> KNN(k=[1, 2]).run(lambda images: images.flatten(1), EvaluationData([(images, labels)], [(images, labels)]))
    {'knn/top1': 1.0, 'knn/top5': 1.0, 'knn/k2/top1': 1.0, 'knn/k2/top5': 1.0}

    Args:
        k: number of voting neighbours, or several, the main one first. Of a smaller bank all images vote.
        temperature: of the votes.
        prefix: of the metrics' names.
        feature: name of the feature in the metrics, where several features are measured.
        main: False for a feature that is not the first of several.
    """

    reads: tuple[Kind, ...] = ("pooled",)

    def __init__(
        self,
        *,
        k: int | Sequence[int] = 20,
        temperature: float = 0.07,
        prefix: str = "knn",
        feature: str | None = None,
        main: bool = True,
    ) -> None:
        check_temperature(temperature)
        self.k = as_ks(k)
        self.temperature = temperature
        self.prefix, self.feature, self.main = prefix, feature, main

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        bank, query = data.features(encoder, "bank"), data.features(encoder, "query")
        accuracies = knn_accuracy_over_ranks(bank, query, k=self.k, temperature=self.temperature)
        return knn_metrics(accuracies, self.prefix, self.feature, main=self.main)


def knn_accuracy_over_ranks(
    bank: Extracted, query: Extracted, *, k: int | Sequence[int] = 20, temperature: float = 0.07
) -> dict[int, TopK]:
    """`knn_accuracy` of features that lie on several ranks: {k: accuracies}.

    Every rank gathers the whole bank and classifies its own queries; sizes may differ, and a rank may have none. Where
    the bank holds fewer than k images, all of them vote, and a line says so.

    Args:
        bank: this rank's part.
        query: this rank's part.
    """
    ks = as_ks(k)
    bank_labels = needed_labels("k-NN", bank.labels, "the batches of the bank have none")
    query_labels = needed_labels("k-NN", query.labels, "the batches of the query have none")
    features, labels = gather_uneven(bank.features), gather_uneven(bank_labels)
    if 0 < len(labels) < max(ks):
        too_many = ", ".join(str(k) for k in ks if k > len(labels))
        say_once(f"k-NN: k={too_many} is more than the {len(labels)} images of the bank, so all {len(labels)} vote")
    right = torch.zeros(len(ks), 2, dtype=torch.float64, device=features.device)
    if len(query_labels):
        fitting = [min(k, len(labels) or k) for k in ks]
        right += knn_correct(features, labels, query.features, query_labels, k=fitting, temperature=temperature)
    return dict(zip(ks, accuracies_over_ranks(right, len(query_labels)), strict=True))
