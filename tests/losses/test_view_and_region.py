from __future__ import annotations

from itertools import product

import pytest
import torch

from esvit_pl.losses import RegionLoss, ViewLoss, match_views

TEMP = 0.1


def test_view_loss_is_the_loop_of_its_docstring():
    torch.manual_seed(0)
    z = [torch.randn(3, 4) for _ in range(5)]
    partitions, target = [torch.randn(3) for _ in z], [torch.randn(3, 4) for _ in range(2)]
    pairs = [(t, s) for t, s in product(range(2), range(5)) if t != s]
    wanted = sum((partitions[s][b] - z[s][b] @ target[t][b] / TEMP) / 3 for t, s in pairs for b in range(3)) / len(
        pairs
    )
    assert ViewLoss(TEMP)(z, partitions, target).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_region_loss_is_the_loop_of_its_docstring():
    torch.manual_seed(0)
    sizes = [4, 4, 2]
    z = [torch.randn(3, n, 5) for n in sizes]
    features = [torch.randn(3, n, 6) for n in sizes]
    partitions, target = [torch.randn(3, n) for n in sizes], [torch.randn(3, n, 5) for n in sizes[:2]]
    cosine = torch.nn.functional.cosine_similarity
    wanted = 0.0
    pairs = [(t, s) for t, s in product(range(2), range(3)) if t != s]
    for t, s in pairs:
        for b, n in product(range(3), range(sizes[s])):
            m = cosine(features[s][b, n][None], features[t][b]).argmax()
            wanted += (partitions[s][b, n] - z[s][b, n] @ target[t][b, m] / TEMP) / (3 * sizes[s] * len(pairs))
    matches = match_views(features, features[:2])
    assert RegionLoss(TEMP)(z, partitions, target, matches).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("loss", [ViewLoss(), RegionLoss()], ids=lambda loss: type(loss).__name__)
def test_one_view_is_refused(loss):
    last = [torch.zeros(1, 4)] if isinstance(loss, ViewLoss) else {}
    with pytest.raises(ValueError, match=r"needs two views or more, got 1 teacher and 1 student views; raise augment"):
        loss(
            [torch.zeros(1, 4)],
            [torch.zeros(1)],
            [torch.zeros(1, 4)],
            *([last] if isinstance(loss, RegionLoss) else []),
        )
