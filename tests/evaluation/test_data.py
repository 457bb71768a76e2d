"""Images for evaluators: shared by ranks, and asked once for each encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from esvit_pl.data import RankShare
from esvit_pl.evaluation import EvaluationData, data

EVERYTHING = TensorDataset(torch.arange(11.0)[:, None], torch.arange(11))


@pytest.mark.parametrize(
    ("loader", "twice"),
    [
        (lambda rank: DataLoader(EVERYTHING, batch_size=4), []),
        (lambda rank: DataLoader(EVERYTHING, batch_size=40), []),  # one batch: the second rank has none
        (lambda rank: DataLoader(EVERYTHING, batch_size=4, sampler=RankShare(11, rank=rank, ranks=2)), []),
        (lambda rank: DataLoader(EVERYTHING, sampler=DistributedSampler(EVERYTHING, 2, rank, shuffle=False)), [0]),
    ],
    ids=["plain", "one_batch", "rank_share", "distributed_sampler_pads"],
)
def test_two_ranks_see_every_image_once_whoever_deals_them(monkeypatch, loader, twice) -> None:
    seen: list[int] = []
    for rank in (0, 1):
        monkeypatch.setattr(data, "num_ranks", lambda: 2)
        monkeypatch.setattr(data, "rank", lambda rank=rank: rank)
        features, labels = EvaluationData(query=loader(rank)).features(lambda x: x, "query")
        assert features.flatten().tolist() == labels.tolist()
        seen += labels.tolist()
    assert sorted(seen) == sorted([*range(11), *twice])


class Counting(nn.Module):
    """Counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def forward(self, x: Any) -> Any:
        self.asked.append("pooled")
        return x

    def last_blocks(self, x: Any, n: int) -> Any:
        self.asked.append(f"last {n}")
        return torch.cat([x] * n, dim=1)


def test_features_of_an_encoder_are_computed_once_and_several_kinds_in_one_pass() -> None:
    passes: list[int] = []

    class Loader:
        def __iter__(self) -> Any:
            passes.append(1)
            return iter([(torch.ones(2, 1), torch.tensor([0, 1]))] * 2)

    images, first, second = EvaluationData(query=Loader), Counting(), Counting()
    images.read([first], "query", ["pooled", 2])
    for _ in range(2):
        assert images.features(first, "query").features.shape == (4, 1)
        assert images.features(first, "query", 2).features.shape == (4, 2)
    assert first.asked == ["pooled", "last 2"] * 2
    assert len(passes) == 1
    images.features(second, "query")
    images.features(first, "query")
    assert second.asked == ["pooled"] * 2
    assert len(passes) == 3  # features of one encoder at a time are kept
    images.read([first, second], "query", ["pooled"])
    assert len(passes) == 4
    for encoder in (first, second, first):
        images.features(encoder, "query")
    assert len(passes) == 4  # of these two together


def test_a_rank_without_images_has_no_features() -> None:
    features, labels = EvaluationData(query=[]).features(lambda x: x, "query")
    assert features.shape == (0, 0)
    assert labels is not None
    assert len(labels) == 0
