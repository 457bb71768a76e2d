from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esvit_pl.evaluation.linear import LinearHeads, as_lrs, equal_heads, learn_
from esvit_pl.evaluation.names import linear_metrics
from esvit_pl.metrics.knn import TopK

FEATURES = torch.randn(32, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(32) % 7


def heads(width: int = 5, lrs=(2.0, 30.0), seed: int = 0) -> LinearHeads:
    torch.manual_seed(seed)
    return LinearHeads(width, 7, lrs, like=FEATURES)


def test_learns_as_momentum_written_out_by_hand() -> None:
    together = heads()
    for head, lr in zip(copy.deepcopy(together).heads, (2.0, 30.0), strict=True):
        velocity = [torch.zeros_like(p) for p in head.parameters()]
        for rows in torch.arange(32).split(12):  # 12, 12 and 8: every image counts the same
            loss = F.cross_entropy(head(FEATURES[rows]), LABELS[rows], reduction="sum") / 256
            grads = torch.autograd.grad(loss, [*head.parameters()])
            for p, v, grad in zip(head.parameters(), velocity, grads, strict=True):
                v.mul_(0.9).add_(grad)
                p.data.sub_(lr * v)
        mine = heads()
        for rows in torch.arange(32).split(12):
            learn_([mine], [FEATURES[rows]], LABELS[rows])
        trained = mine.heads[mine.lrs.index(lr)]
        assert all(
            torch.allclose(a, b, rtol=1e-12) for a, b in zip(trained.parameters(), head.parameters(), strict=True)
        )
        assert not torch.equal(trained.weight, together.heads[0].weight)


def test_several_features_learn_as_each_alone_and_gradients_stay_inside() -> None:
    wide = torch.cat([FEATURES, FEATURES**2], dim=1).requires_grad_()
    together, alone = [heads(), heads(10)], [heads(), heads(10)]
    learn_(together, [FEATURES, wide], LABELS)
    learn_(alone[:1], [FEATURES], LABELS)
    learn_(alone[1:], [wide], LABELS)
    for a, b in zip(together, alone, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert wide.grad is None
    assert all(p.grad is None for part in together for p in part.parameters())


def test_nothing_is_learnt_from_images_without_a_label() -> None:
    some, all_of_them = heads(), heads()
    learn_([some], [FEATURES[:20]], LABELS[:20])
    learn_([all_of_them], [FEATURES], LABELS.index_fill(0, torch.arange(20, 32), -1))
    for p, q in zip(some.parameters(), all_of_them.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)


def test_two_ranks_learn_from_all_images_with_one_collective(monkeypatch) -> None:
    one, two = heads(), heads()
    parts = [slice(0, 20), slice(20, 32)]
    sent: list[torch.Tensor] = []
    monkeypatch.setattr("esvit_pl.evaluation.linear.sum_over_ranks", lambda x: sent.append(x) or x)
    for rows in parts:
        learn_([heads()], [FEATURES[rows]], LABELS[rows])
    assert [len(x) for x in sent] == [2 * 7 * 6] * 2  # everything at once
    monkeypatch.setattr("esvit_pl.evaluation.linear.sum_over_ranks", lambda x: sent[0] + sent[1])
    learn_([two], [FEATURES[parts[0]]], LABELS[parts[0]])
    monkeypatch.undo()
    learn_([one], [FEATURES], LABELS)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)


def test_goes_on_bit_for_bit_from_what_was_saved(tmp_path) -> None:
    whole = heads()
    learn_([whole], [FEATURES], LABELS)
    torch.save(whole.saved_state(), tmp_path / "heads.pt")
    learn_([whole], [FEATURES], LABELS)
    again = heads(seed=1)
    again.restore_(torch.load(tmp_path / "heads.pt", weights_only=True))
    learn_([again], [FEATURES], LABELS)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


def test_counts_right_answers_by_hand() -> None:
    part = LinearHeads(6, 6, [1.0])
    with torch.no_grad():
        part.heads[0].weight.copy_(torch.eye(6))  # logits are the features
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1]] * 3)
    assert part.correct(scores, torch.tensor([0, 4, 5])).tolist() == [[1.0, 2.0]]  # first, fifth, sixth
    few = LinearHeads(6, 3, [1.0])
    assert few.correct(scores, torch.tensor([0, 1, 2]))[0, 1] == 3


def test_equal_heads() -> None:
    first, second = equal_heads(50, 40, 2)
    assert isinstance(first, nn.Linear)
    assert torch.equal(first.weight, second.weight)
    assert first.weight is not second.weight
    assert first.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert first.bias.abs().max() == 0


def test_names() -> None:
    low, high = TopK(0.25, 0.5), TopK(0.75, 1.0)
    assert linear_metrics("linear", [(None, {0.1: low})]) == {"linear/top1": 0.25, "linear/top5": 0.5}
    assert linear_metrics("linear", [(None, {0.1: low, 3.0: high})]) == {
        "linear/top1": 0.75,
        "linear/top5": 1.0,
        "linear/lr0.1/top1": 0.25,
        "linear/lr3/top1": 0.75,
        "linear/best_lr": 3.0,
    }
    assert linear_metrics("mine", [("a", {0.1: low}), ("b", {0.1: high})]) == {
        "mine/top1": 0.25,
        "mine/top5": 0.5,
        "mine/a/lr0.1/top1": 0.25,
        "mine/b/lr0.1/top1": 0.75,
    }


@pytest.mark.parametrize("lr", [[], 0.0, [1.0, 1.0], [-1.0, 2.0]])
def test_as_lrs_refuses(lr) -> None:
    with pytest.raises(ValueError, match="one lr or several different ones, above 0"):
        as_lrs(lr)
    assert as_lrs(3) == [3.0]
