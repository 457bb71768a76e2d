"""k-NN at ImageNet's size: blocks of the bank, in half precision too, against all similarities of a few queries."""

# n images of the bank | q query images | d channels | c classes | k neighbours

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.comparison import compared, relative_error
from esvit_pl.evaluation import Extracted, knn_accuracy_over_ranks
from esvit_pl.profiling.measure import peak_bytes, seconds

CLASSES, QUERY_OF_IMAGENET, TEMPERATURE = 1000, 50_000, 0.07


class Search(NamedTuple):
    """Accuracies of some queries in both forms, measured in one run."""

    part: str
    straight_seconds: float
    our_seconds: float
    ratio: float
    straight_bytes: int
    """Most memory held at once, the bank included."""
    our_bytes: int
    bytes_ratio: float
    straight_for_50_000_seconds: float
    """What ImageNet's query would take, by the number of queries."""
    ours_for_50_000_seconds: float
    error: float
    """Between the accuracies."""


def straightforward(bank: Extracted, query: Extracted, ks: Sequence[int], at_once: int = 256) -> Tensor:
    """Accuracies (k 2), as they are usually computed: for each k by itself, all similarities of 256 queries, and one
    vote a row."""
    assert bank.labels is not None
    assert query.labels is not None
    right = torch.zeros(len(ks), 2)
    for row, k in enumerate(ks):
        for some, truth in zip(query.features.split(at_once), query.labels.split(at_once), strict=True):
            cosines, places = (some @ bank.features.T).topk(k)
            one_hot = cosines.new_zeros(len(some) * k, CLASSES).scatter_(1, bank.labels[places].view(-1, 1), 1)
            votes = (one_hot.view(len(some), k, CLASSES) * (cosines / TEMPERATURE).exp()[..., None]).sum(1)
            hits = votes.sort(descending=True).indices[:, : min(5, k)] == truth[:, None]
            right[row] += torch.stack([hits[:, 0].sum(), hits.sum()])
    return right / len(query.features)


def ours(bank: Sequence[Extracted], query: Extracted, ks: Sequence[int]) -> Tensor:
    return torch.tensor(list(knn_accuracy_over_ranks(bank, query, k=ks, temperature=TEMPERATURE).values()))


def made(images: int, channels: int, seed: int, device: str) -> Extracted:
    """Unit features of a thousand classes that overlap."""
    centres = torch.randn(CLASSES, channels, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images,), generator=draw)
    features = torch.empty(images, channels, device=device)
    for part, classes in zip(features.split(2**14), labels.split(2**14), strict=True):
        noise = torch.randn(part.shape, generator=draw)
        part.copy_(F.normalize(centres[classes] + 6 * noise, dim=1))
    return Extracted(features, labels.to(device))


def searches(
    *,
    bank_images: int = 1_281_167,
    query_images: int = 512,
    channels: int = 768,
    ks: Sequence[int] = (20, 10, 100, 200),
    repeats: int = 1,
    device: str = "cpu",
) -> Iterator[Search]:
    """One k, several k, and several k of a bank in half precision, against the straightforward form in float32.

    Args:
        bank_images: n.
        query_images: q; time grows with it, and memory beyond the bank does not.
        channels: d.
        ks: the first one alone, then all.
        repeats: pairs of passes measured.
        device: where.
    """
    bank, query = made(bank_images, channels, 1, device), made(query_images, channels, 2, device)
    size = bank.features.nbytes
    times = QUERY_OF_IMAGENET / query_images
    for some, dtype in ((ks[:1], torch.float32), (ks, torch.float32), (ks, torch.float16)):
        kept = [bank if dtype == torch.float32 else Extracted(bank.features.to(dtype), bank.labels)]
        forms: list[Callable[[], Tensor]] = [
            lambda some=some: straightforward(bank, query, some),  # type: ignore[misc]
            lambda some=some, kept=kept: ours(kept, query, some),  # type: ignore[misc]
        ]
        (straight_bytes, wanted), (our_bytes, got) = (_watched(form, device) for form in forms)
        pairs = [(seconds(forms[0], device), seconds(forms[1], device)) for _ in range(repeats)]
        found = compared("", pairs)
        theirs, mine = size + straight_bytes, kept[0].features.nbytes + our_bytes
        yield Search(
            f"k={','.join(map(str, some))}, {str(dtype).removeprefix('torch.')}",
            found.straight_seconds,
            found.our_seconds,
            found.ratio,
            theirs,
            mine,
            theirs / mine,
            found.straight_seconds * times,
            found.our_seconds * times,
            relative_error([got], [wanted]),
        )


def _watched(form: Callable[[], Tensor], device: str) -> tuple[int, Tensor]:
    """The most memory that a form held at once, and its answer."""
    answers: list[Tensor] = []
    held = peak_bytes(lambda: answers.append(form()), device)
    return held, answers[0]
