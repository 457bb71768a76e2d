"""Weighted k-NN as an evaluator."""

# n images of this rank's part of the bank | q query images of this rank | d channels

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.distributed import gather_over_ranks, gather_uneven, max_over_ranks, num_ranks, rank, return_to_ranks
from esvit_pl.evaluation.accuracy import accuracies_over_ranks
from esvit_pl.evaluation.data import HALF, EvaluationData
from esvit_pl.evaluation.features import Extracted, needed_labels
from esvit_pl.evaluation.interface import Evaluator, Kind
from esvit_pl.evaluation.names import knn_metrics
from esvit_pl.metrics.knn import QUERIES_AT_ONCE, TopK, as_ks, check_labels, check_temperature, nearest, right_answers
from esvit_pl.printing import say_once

BankDtype = Literal["float32", "float16", "bfloat16"]
WORTH_A_LINE = 10**8
"""A bank of so many bytes or more is worth a line about its memory."""


class KNN(Evaluator):
    """Weighted k-NN accuracy of pooled features (`metrics.knn`; docs/recipes.md, "Evaluation").

    Images of the bank vote on those of the query; ``knn/top1`` and ``knn/top5`` are the fractions that are right, for
    the first k; further k are ``knn/k<k>/top1``. Each rank keeps its part of the bank, and the query goes round
    (`knn_accuracy_over_ranks`). A line says what a bank of 100 MB or more takes, before the images are read where their
    number and the encoder's width are known.

    >>> import torch
    >>> from esvit_pl.evaluation import KNN, EvaluationData
    >>> images, labels = torch.eye(6).reshape(6, 1, 2, 3), torch.arange(6) % 2
    >>> KNN(k=[1, 2]).run(lambda images: images.flatten(1), EvaluationData([(images, labels)], [(images, labels)]))
    {'knn/top1': 1.0, 'knn/top5': 1.0, 'knn/k2/top1': 1.0, 'knn/k2/top5': 1.0}

    Args:
        k: number of voting neighbours, or several, the main one first. Of a smaller bank all images vote.
        temperature: of the votes.
        bank_dtype: in which the bank is kept: float32 (as the features are), float16 or bfloat16 (at unit length, in
            half the memory). Cosines are computed in float32 at least.
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
        bank_dtype: BankDtype = "float32",
        prefix: str = "knn",
        feature: str | None = None,
        main: bool = True,
    ) -> None:
        check_temperature(temperature)
        self.k = as_ks(k)
        self.temperature = temperature
        if bank_dtype not in ("float32", *HALF):
            raise ValueError(f"k-NN needs bank_dtype float32, float16 or bfloat16, got {bank_dtype}")
        self.bank_dtype = bank_dtype
        self.prefix, self.feature, self.main = prefix, feature, main

    @property
    def reads_bank(self) -> tuple[Kind, ...]:
        return ("pooled" if self.bank_dtype == "float32" else self.bank_dtype,)

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        images, width = data.number("bank"), getattr(encoder, "width", None)
        if images and isinstance(width, int):
            tell_memory(images, width, getattr(torch, self.bank_dtype))
        (kind,) = self.reads_bank
        bank = data.pieces(encoder, "bank", kind)
        query = data.features(encoder, "query")
        right = _right_over_ranks(bank, query, self.k, self.temperature)
        found = knn_metrics(_accuracies(self.k, right), self.prefix, self.feature, main=self.main)
        data.answers.update(zip(found, right.transpose(1, 2).flatten(0, 1), strict=True))  # top1 and top5 of each k
        return found


def knn_accuracy_over_ranks(
    bank: Extracted | Sequence[Extracted],
    query: Extracted,
    *,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    chunk: int | None = None,
) -> dict[int, TopK]:
    """`knn_accuracy` of features that lie on several ranks: {k: accuracies}.

    Each rank's part of the bank stays where it is. The queries go round in turns: every rank finds the nearest images
    of its part for all of them, and sends back their cosines and classes. The answer is that of one process; of equally
    near images those count first that come first where images are dealt to ranks in turn. Sizes may differ, and a rank
    may have none. Where the bank holds fewer than k images, all of them vote, and a line says so.

    Args:
        bank: this rank's part, in one piece or in several, in any precision.
        query: this rank's part.
        chunk: queries of all ranks that are compared at once; changes memory, never the result.
    """
    ks = as_ks(k)
    return _accuracies(ks, _right_over_ranks(bank, query, ks, temperature, chunk))


def _accuracies(ks: Sequence[int], right: Tensor) -> dict[int, TopK]:
    return dict(zip(ks, accuracies_over_ranks(right.sum(1).double(), right.shape[1]), strict=True))


def _right_over_ranks(
    bank: Extracted | Sequence[Extracted],
    query: Extracted,
    ks: Sequence[int],
    temperature: float,
    chunk: int | None = None,
) -> Tensor:
    """Which of this rank's queries are answered right, (len(ks) q 2) bool: `right_answers`."""
    pieces = [bank] if isinstance(bank, Extracted) else list(bank)
    query_labels = needed_labels("k-NN", query.labels, "the batches of the query have none")
    where = "the batches of the bank have none"
    found = [needed_labels("k-NN", piece.labels, where) for piece in pieces if len(piece.features)]
    labels = torch.cat(found) if found else query_labels[:0]
    features = [piece.features for piece in pieces if len(piece.features)]
    for name, x, numbers in [("bank_labels", labels, labels), ("query_labels", query.features, query_labels)]:
        check_labels(name, x, numbers)
    sizes = gather_over_ranks(torch.tensor([[len(labels), len(query_labels)]], device=query_labels.device))  # (ranks 2)
    images = int(sizes[:, 0].sum())
    if not images:
        raise ValueError("k-NN needs one image of the bank or more, got none")
    if images < max(ks):
        too_many = ", ".join(str(k) for k in ks if k > images)
        say_once(f"k-NN: k={too_many} is more than the {images} images of the bank, so all {images} vote")
    if features:
        tell_memory(images, features[0].shape[1], features[0].dtype)
    fitting = [min(k, images) for k in ks]
    classes = int(max_over_ranks(torch.cat([labels, query_labels, labels.new_zeros(1)]).max())) + 1
    right = []
    each = max(1, (chunk or QUERIES_AT_ONCE) // num_ranks())
    for start in range(0, int(sizes[:, 1].max()), each):
        mine = slice(start, start + each)
        asking = (sizes[:, 1] - start).clamp(0, each).tolist()
        cosines, neighbours = _nearest_of_all(features, labels, query.features[mine], asking, max(fitting))
        right.append(right_answers(cosines, neighbours, query_labels[mine], fitting, temperature, classes))
    return torch.cat(right, 1) if right else query_labels.new_zeros(len(ks), 0, 2, dtype=torch.bool)


def _nearest_of_all(
    bank: Sequence[Tensor], labels: Tensor, query: Tensor, asking: Sequence[int], k: int
) -> tuple[Tensor, Tensor]:
    """Cosines and classes (q k) of the nearest images of all ranks, nearest first.

    Args:
        bank: this rank's part.
        labels: (n,) its classes.
        query: (q d) this rank's.
        asking: q of each rank.
    """
    near = min(k, len(labels))
    everybodys = gather_uneven(query)
    if near:
        cosines, places = nearest(bank, everybodys, near)
    else:
        cosines, places = everybodys.new_zeros(len(everybodys), 0), labels.new_zeros(len(everybodys), 0)
    if num_ranks() == 1:
        return cosines, labels[places]
    found = torch.stack([places * num_ranks() + rank(), labels[places]], dim=-1)  # (all q, near, 2)
    cosines = return_to_ranks(F.pad(cosines, (0, k - near), value=-torch.inf), asking)  # (ranks q k)
    found = return_to_ranks(F.pad(found, (0, 0, 0, k - near)), asking)
    cosines, found = cosines.transpose(0, 1).flatten(1), found.transpose(0, 1).flatten(1, 2)  # (q, ranks k)
    order = found[..., 0].argsort(dim=1)
    cosines, nearest_first = cosines.gather(1, order).sort(dim=1, descending=True, stable=True)
    order = order.gather(1, nearest_first)[:, :k]
    return cosines[:, :k], found[..., 1].gather(1, order)


def tell_memory(images: int, channels: int, dtype: torch.dtype) -> None:
    """Say what a large bank takes, before it is there where that can be known."""
    size = images * channels * dtype.itemsize / num_ranks()
    if size >= WORTH_A_LINE:
        say_once(
            f"k-NN: a bank of {images:,} images x {channels} channels in {str(dtype).removeprefix('torch.')} takes "
            f"{size / 1e9:.2f} GB" + (f" on each of {num_ranks()} processes" if num_ranks() > 1 else "")
        )
