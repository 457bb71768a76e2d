"""Weighted k-nearest-neighbour classification of frozen features (Wu et al., arXiv 1805.01978; docs/recipes.md).

Features are scaled to unit length; the k images of the bank with the largest cosine vote for their class, each with
weight exp(cosine / temperature).
"""

# n images of the bank | q query images | d channels | c classes | k neighbours

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES_AT_ONCE = 2**26
"""Size of the largest block of similarities (256 MB in float32); how many queries go at once follows from it."""


class TopK(NamedTuple):
    """Accuracies as fractions in 0-1."""

    top1: float
    top5: float


def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    query: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Classes of every query image, most votes first; equal votes go to the lower class number.

    Args:
        bank: (n d) features of any length.
        bank_labels: (n,) classes, 0 and up.
        query: (q d).
        k: neighbours that vote; at most n.
        temperature: of the votes.
        num_classes: c; by default the largest label of the bank, plus one.
        chunk: queries at once; changes memory, never the result.

    Returns:
        (q c) long.
    """
    ranked = [votes[0] for votes in _ranked(bank, bank_labels, query, [k], temperature, num_classes, chunk)]
    return torch.cat(ranked) if ranked else bank_labels.new_zeros(0, num_classes or 0)


def knn_correct(
    bank: Tensor,
    bank_labels: Tensor,
    query: Tensor,
    query_labels: Tensor,
    *,
    k: Sequence[int] = (20,),
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Numbers of right answers, (len(k) 2) float64: for each k, the true class is the first, is among the first five.

    Sums, so that batches and ranks can be added up. Fewer than five neighbours vote for fewer than five classes, and a
    class without a vote is no answer: then "the first five" are the first k, as DINO's authors mended their code; the
    release of EsViT counts five. With fewer than five classes all of them are "the first five".
    """
    if num_classes is None and len(query_labels):
        num_classes = int(max(bank_labels.max(), query_labels.max())) + 1 if len(bank_labels) else None
    _check_labels("query_labels", query, query_labels)
    right = torch.zeros(len(k), 2, dtype=torch.float64, device=query.device)
    start = 0
    for ranked in _ranked(bank, bank_labels, query, k, temperature, num_classes, chunk):
        truth = query_labels[start : start + len(ranked[0]), None]
        start += len(truth)
        for row, (n, classes) in enumerate(zip(k, ranked, strict=True)):
            hits = classes[:, : min(5, n)] == truth  # (q up to 5)
            right[row] += torch.stack([hits[:, 0].sum(), hits.sum()])
    return right


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    query: Tensor,
    query_labels: Tensor,
    *,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk: int | None = None,
) -> dict[int, TopK]:
    """{k: (top-1, top-5)} accuracies; arguments as in `knn_predict`, `k` one number or several.

    Raises:
        ValueError: k below 1 or above the size of the bank, no query, lengths or widths that do not fit.
    """
    ks = as_ks(k)
    if len(query) == 0:
        raise ValueError("knn_accuracy needs one query image or more, got none")
    right = knn_correct(
        bank, bank_labels, query, query_labels, k=ks, temperature=temperature, num_classes=num_classes, chunk=chunk
    )
    return {n: TopK(*row) for n, row in zip(ks, (right / len(query)).tolist(), strict=True)}


def nearest(bank: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k images of the bank (n d) with the largest cosine to each of the query (q d), nearest first.

    >>> nearest(torch.eye(3), torch.tensor([[0.0, 3.0, 1.0]]), k=2)[1]
    tensor([[1, 2]])

    Returns:
        Cosines (q k), and the places in the bank (q k).
    """
    with torch.autocast(query.device.type, enabled=False):  # bfloat16 has too few digits to rank by
        cosines, places = (F.normalize(query, dim=1) @ F.normalize(bank, dim=1).T).topk(k, dim=1)
    return cosines, places


def as_ks(k: int | Sequence[int]) -> list[int]:
    """One k or several -> a list without repeats."""
    ks = [k] if isinstance(k, int) else [int(n) for n in k]
    if not ks or min(ks) < 1:
        raise ValueError(f"k-NN needs k of 1 or more, got k={k}")
    return list(dict.fromkeys(ks))


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"k-NN needs a temperature above 0, got {temperature}")


def _ranked(
    bank: Tensor,
    bank_labels: Tensor,
    query: Tensor,
    ks: Sequence[int],
    temperature: float,
    num_classes: int | None,
    chunk: int | None,
) -> Iterator[list[Tensor]]:
    """For every chunk of queries: for every k the classes (q c), most votes first."""
    check_temperature(temperature)
    _check_labels("bank_labels", bank, bank_labels)
    if bank.ndim != 2 or query.ndim != 2 or bank.shape[1] != query.shape[1]:
        raise ValueError(f"bank and query must be (n, d) and (q, d), got {tuple(bank.shape)} and {tuple(query.shape)}")
    if min(ks) < 1 or max(ks) > len(bank):
        wrong = min(ks) if min(ks) < 1 else max(ks)
        raise ValueError(f"k={wrong} neighbours, and the bank holds {len(bank)} images; choose k from 1 to {len(bank)}")
    classes = int(bank_labels.max()) + 1 if num_classes is None else num_classes
    if int(bank_labels.max()) >= classes:
        raise ValueError(f"num_classes={classes} is too small for label {int(bank_labels.max())} in the bank")
    chunk = max(1, SIMILARITIES_AT_ONCE // len(bank)) if chunk is None else chunk
    bank = F.normalize(bank, dim=1)
    for part in F.normalize(query, dim=1).split(chunk):
        with torch.autocast(part.device.type, enabled=False):  # bfloat16 has too few digits to rank by
            cosine, neighbours = (part @ bank.T).topk(max(ks), dim=1)  # (q k), nearest first
        # Only ratios of votes matter; the nearest neighbour's is held at 1, so that no temperature overflows.
        weight = ((cosine - cosine[:, :1]) / temperature).exp()
        label = bank_labels[neighbours]
        yield [
            weight.new_zeros(len(part), classes)
            .scatter_add_(1, label[:, :n], weight[:, :n])
            .sort(dim=1, descending=True, stable=True)
            .indices
            for n in ks
        ]


def _check_labels(name: str, features: Tensor, labels: Tensor) -> None:
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{name} must be ({len(features)},), one for each feature, got {tuple(labels.shape)}")
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"{name} must be classes from 0 on, got {int(labels.min())}")
