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

QUERIES_AT_ONCE, BANK_AT_ONCE = 2**11, 2**15
"""Images that are compared at once: similarities take 256 MB in float32 at most, whatever the size of the bank."""
SPARE = 32
"""So many more candidates than neighbours are looked at closely (`nearest`)."""


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
    classes = _checked(bank, bank_labels, query, [k], temperature, num_classes)
    if not len(query):
        return bank_labels.new_zeros(0, classes)
    ranked: list[Tensor] = []
    for part in query.split(chunk or QUERIES_AT_ONCE):
        cosines, neighbours = nearest(bank, part, k)
        ranked += _ranked(cosines, bank_labels[neighbours], [k], temperature, classes)
    return torch.cat(ranked)


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
    check_labels("query_labels", query, query_labels)
    classes = _checked(bank, bank_labels, query, k, temperature, num_classes)
    right = torch.zeros(len(k), 2, dtype=torch.float64, device=query.device)
    size = chunk or QUERIES_AT_ONCE
    for part, truth in zip(query.split(size), query_labels.split(size), strict=True):
        cosines, neighbours = nearest(bank, part, max(k))
        right += right_answers(cosines, bank_labels[neighbours], truth, k, temperature, classes).sum(1)
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


def nearest(
    bank: Tensor | Sequence[Tensor], query: Tensor, k: int, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k images of the bank (n d) with the largest cosine to each of the query (q d), nearest first; of equally near
    ones the first of the bank.

    A product of matrices rounds the same cosine differently in another place or shape. So it only proposes k + `SPARE`
    candidates, whose cosines are then computed in float64, one by one, and rounded to the query's type. The answer
    depends neither on `chunk` nor on how the bank is cut, unless more than `SPARE` images lie within that rounding.

    >>> nearest(torch.eye(3), torch.tensor([[0.0, 3.0, 1.0]]), k=2)[1]
    tensor([[1, 2]])

    Args:
        bank: features of any length and type, in one tensor or in several; half precision is read block by block.
        query: float32 or float64.
        k: at most n.
        chunk: queries at once; `QUERIES_AT_ONCE` by default.

    Returns:
        Cosines (q k), and the places in the bank (q k).

    Raises:
        ValueError: the bank holds fewer than k images, or its features are not as wide as the query's.
    """
    pieces = [bank] if isinstance(bank, Tensor) else bank
    images = sum(map(len, pieces))
    if k > images:
        raise ValueError(f"k={k} neighbours, and the bank holds {images} images; choose k from 1 to {images}")
    if query.ndim != 2 or any(piece.shape[1:] != query.shape[1:] for piece in pieces):
        shapes = ", ".join(str(tuple(piece.shape)) for piece in pieces)
        raise ValueError(f"bank and query must be (n, d) and (q, d), got {shapes} and {tuple(query.shape)}")
    blocks = [block for piece in pieces for block in piece.split(BANK_AT_ONCE)]
    with torch.autocast(query.device.type, enabled=False):  # bfloat16 has too few digits to rank by
        found = [_nearest(blocks, part, k) for part in query.split(chunk or QUERIES_AT_ONCE)]
    cosines, places = zip(*found, strict=True)
    return torch.cat(cosines), torch.cat(places)


def right_answers(
    cosines: Tensor, labels: Tensor, truth: Tensor, k: Sequence[int], temperature: float, num_classes: int
) -> Tensor:
    """Whether the votes of known neighbours are right; `knn_correct` counts it.

    Args:
        cosines: (q n) of the neighbours, nearest first, n the largest k.
        labels: (q n) their classes.
        truth: (q,) classes of the query.

    Returns:
        (len(k) q 2) bool: the true class is the first, is among the first five.
    """
    right = []
    for n, classes in zip(k, _ranked(cosines, labels, k, temperature, num_classes), strict=True):
        hits = classes[:, : min(5, n)] == truth[:, None]  # (q up to 5)
        right.append(torch.stack([hits[:, 0], hits.any(1)], dim=1))
    return torch.stack(right)


def as_ks(k: int | Sequence[int]) -> list[int]:
    """One k or several -> a list without repeats."""
    ks = [k] if isinstance(k, int) else [int(n) for n in k]
    if not ks or min(ks) < 1:
        raise ValueError(f"k-NN needs k of 1 or more, got k={k}")
    return list(dict.fromkeys(ks))


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"k-NN needs a temperature above 0, got {temperature}")


def _nearest(blocks: Sequence[Tensor], query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    query = F.normalize(query, dim=1)
    values, places = query.new_zeros(len(query), 0), torch.zeros(len(query), 0, dtype=torch.long, device=query.device)
    start, norms = 0, []
    for block in blocks:
        norms.append(torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).clamp_min_(1e-12))
        cosines = (query @ block.to(query.dtype).T).div_(norms[-1].to(query.dtype))  # (q n)
        near, where = _largest(cosines, k + SPARE)
        values, kept = _largest(torch.cat([values, near], dim=1), k + SPARE)
        places = torch.cat([places, where + start], dim=1).gather(1, kept)
        start += len(block)
    exact = (_products(blocks, query, places) / torch.cat(norms)[places]).to(query.dtype)
    exact, order = exact.sort(dim=1, descending=True, stable=True)
    return exact[:, :k], places.gather(1, order[:, :k])


def _largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest numbers of each row and their places, from left to right; of equal ones the first ones."""
    if x.shape[1] <= k:
        return x, torch.arange(x.shape[1], device=x.device).expand_as(x)
    values, places = x.topk(k + 1, dim=1)
    places = places[:, :k]
    for rows in (values[:, k - 1] == values[:, k]).nonzero()[:, 0].split(256):  # topk takes any of equal ones
        places[rows] = x[rows].sort(dim=1, descending=True, stable=True).indices[:, :k]
    places = places.sort(dim=1).values
    return x.gather(1, places), places


def _products(blocks: Sequence[Tensor], query: Tensor, places: Tensor) -> Tensor:
    """(q k) float64, of the query (q d) and the images of the bank in these places, each summed by itself."""
    at_once = 2**20 if query.device.type == "cpu" else 2**25  # numbers: what a cache holds, and a GPU's memory
    size = max(1, at_once // (places.shape[1] * query.shape[1]))
    found = []
    for some, where in zip(query.double().split(size), places.split(size), strict=True):
        images = some.new_empty(*where.shape, query.shape[1])
        start = 0
        for block in blocks:
            inside = ((where >= start) & (where < start + len(block))).nonzero(as_tuple=True)
            images[inside] = block[where[inside] - start].to(images.dtype)
            start += len(block)
        found.append(images.mul_(some[:, None]).sum(-1))
    return torch.cat(found)


def _ranked(
    cosines: Tensor, labels: Tensor, ks: Sequence[int], temperature: float, num_classes: int
) -> Iterator[Tensor]:
    """For every k the classes (q c), most votes first."""
    # Only ratios of votes matter; the nearest neighbour's is held at 1, so that no temperature overflows.
    weight = ((cosines - cosines[:, :1]) / temperature).exp()
    for n in ks:
        votes = weight.new_zeros(len(weight), num_classes).scatter_add_(1, labels[:, :n], weight[:, :n])
        yield votes.sort(dim=1, descending=True, stable=True).indices


def _checked(
    bank: Tensor, bank_labels: Tensor, query: Tensor, ks: Sequence[int], temperature: float, num_classes: int | None
) -> int:
    """The number of classes; raises where something does not fit."""
    check_temperature(temperature)
    check_labels("bank_labels", bank, bank_labels)
    if bank.ndim != 2 or query.ndim != 2 or bank.shape[1] != query.shape[1]:
        raise ValueError(f"bank and query must be (n, d) and (q, d), got {tuple(bank.shape)} and {tuple(query.shape)}")
    if min(ks) < 1 or max(ks) > len(bank):
        wrong = min(ks) if min(ks) < 1 else max(ks)
        raise ValueError(f"k={wrong} neighbours, and the bank holds {len(bank)} images; choose k from 1 to {len(bank)}")
    classes = int(bank_labels.max()) + 1 if num_classes is None else num_classes
    if int(bank_labels.max()) >= classes:
        raise ValueError(f"num_classes={classes} is too small for label {int(bank_labels.max())} in the bank")
    return classes


def check_labels(name: str, features: Tensor, labels: Tensor) -> None:
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{name} must be ({len(features)},), one for each feature, got {tuple(labels.shape)}")
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"{name} must be classes from 0 on, got {int(labels.min())}")
