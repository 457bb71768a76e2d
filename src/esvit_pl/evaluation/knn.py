"""Weighted k-NN accuracy of features that lie on several ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from esvit_pl.distributed import gather_uneven, sum_over_ranks
from esvit_pl.evaluation.features import Extracted
from esvit_pl.metrics.knn import TopK, as_ks, knn_correct


def knn_accuracy_over_ranks(
    bank: Extracted, query: Extracted, *, k: int | Sequence[int] = 20, temperature: float = 0.07
) -> tuple[dict[int, TopK], int]:
    """`knn_accuracy` of features that lie on several ranks, and the number of query images on all of them.

    Every rank gathers the whole bank and classifies its own queries; sizes may differ, and a rank may have none.

    Args:
        bank: this rank's part.
        query: this rank's part.
    """
    ks = as_ks(k)
    if bank.labels is None or query.labels is None:
        which = "bank" if bank.labels is None else "query"
        raise ValueError(f"k-NN needs labels, and the batches of the {which} have none; give unpack= if they hide them")
    features, labels = gather_uneven(bank.features), gather_uneven(bank.labels)
    right = torch.zeros(len(ks), 2, dtype=torch.float64, device=features.device)
    if len(query.labels):
        right += knn_correct(features, labels, query.features, query.labels, k=ks, temperature=temperature)
    total = int(sum_over_ranks(torch.tensor(len(query.labels), device=features.device)))
    if total == 0:
        raise ValueError("k-NN needs one query image or more, got none")
    fractions = (sum_over_ranks(right) / total).tolist()
    return {n: TopK(*row) for n, row in zip(ks, fractions, strict=True)}, total
