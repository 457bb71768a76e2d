from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import nn

from esvit_pl.backbones import build
from esvit_pl.evaluation import EvaluationData, Linear, RawPixels
from esvit_pl.evaluation.linear import POOLINGS, LinearHeads, as_lrs, equal_heads, learn_
from esvit_pl.evaluation.names import linear_metrics, probe_metrics
from esvit_pl.metrics.knn import TopK
from esvit_pl.printing import say_once
from esvit_pl.seeding import numpy_generator

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


# -- Linear, the evaluator


def encoder():
    torch.manual_seed(0)
    return toys.backbone().eval()


def images_of(numbers, seed: int = 0):
    """Of three classes, told apart by their brightness."""
    labels = torch.tensor(numbers) % 3
    noise = torch.randn(len(numbers), 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return noise + labels[:, None, None, None] - 1, labels


def test_on_cached_features_it_is_a_plain_loop() -> None:
    """Without augmentation: the features of the bank, in batches of another order in every epoch, to 1e-5."""
    bank, query = images_of(range(24)), images_of(range(9), seed=1)
    data = EvaluationData([bank], [query], num_classes=3)
    probe = Linear(last_blocks=2, lr=[0.5, 3.0], epochs=4, augmented=False, batch_size=10)
    net = encoder()
    candidates, _ = probe.train(net, data)
    with torch.no_grad():
        features = net.last_blocks(bank[0], 2)
    for lr, head in zip([0.5, 3.0], candidates.heads, strict=True):
        torch.manual_seed(0)
        plain = equal_heads(features.shape[1], 3, 1)[0]
        optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.9)
        for epoch in range(4):
            optimizer.param_groups[0]["lr"] = lr * 10 / 256 * (1 + math.cos(math.pi * epoch / 4)) / 2
            order = numpy_generator(0, "linear probe", epoch).permutation(24)
            for rows in (order[:10], order[10:20]):
                optimizer.zero_grad()
                F.cross_entropy(plain(features[rows]), bank[1][rows]).backward()
                optimizer.step()
        for mine, other in zip(head.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


VIT = {"name": "test_vit", "img_size": 16, "patch_size": 4}


def test_poolings_are_a_plain_loop_each() -> None:
    """Every classifier beside every other one ends as a plain loop over its own features does, to 1e-5."""
    torch.manual_seed(0)
    net = build(**VIT).eval()
    bank, query = images_of(range(24)), images_of(range(9), seed=1)
    data = EvaluationData([bank], [query], num_classes=3)
    how = {"epochs": 3, "augmented": False, "batch_size": 24, "lr": [0.1, 1.0]}
    candidates, _ = Linear(last_blocks=[1, 3], pooling=list(POOLINGS), **how).train(net, data)
    assert len(candidates.choices) == 16
    with torch.no_grad():
        features, three = net(bank[0]), net.last_blocks(bank[0], 3)
    mean, largest = features.regions.mean(1), features.regions.amax(1)
    token, earlier = features.pooled, three[:, : -net.width]
    last = {
        **{"pooled": [token], "mean": [mean], "max": [largest]},
        "pooled+mean": [token, mean],  # the class token and the mean of the patch tokens: DINOv2's second probe
    }
    for choice, head in zip(candidates.choices, candidates.heads, strict=True):
        seen = torch.cat([*([earlier] if choice.blocks == 3 else []), *last[choice.pooling]], 1)
        torch.manual_seed(0)
        plain = equal_heads(seen.shape[1], 3, 1)[0]
        optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.9)
        for epoch in range(3):
            optimizer.param_groups[0]["lr"] = choice.lr * 24 / 256 * (1 + math.cos(math.pi * epoch / 3)) / 2
            optimizer.zero_grad()
            F.cross_entropy(plain(seen), bank[1]).backward()
            optimizer.step()
        for mine, other in zip(head.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def test_all_poolings_take_one_pass_of_a_vit() -> None:
    net, passes = build(**VIT).eval(), []
    data = EvaluationData([images_of(range(24))], [images_of(range(9), seed=1)], num_classes=3)
    probe = Linear(last_blocks=[1, 3], pooling=list(POOLINGS), epochs=1, augmented=False, lr=[0.1, 1.0])
    probe.choices_for(net)
    net.model.blocks[0].register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    found = probe.run(net, data)
    assert passes == [1, 24, 9]  # what it pools, the bank, the query
    assert found["linear/best_pooling"] in range(4)
    assert {f"linear/blocks3/{name}/lr1/top1" for name in POOLINGS} <= found.keys()


def test_a_pooling_that_shows_nothing_new_is_tried_once_with_a_line(capsys) -> None:
    say_once.cache_clear()
    net = encoder()  # a Swin: its pooled feature is the mean of its regions
    data = EvaluationData([images_of(range(24))], [images_of(range(9), seed=1)], num_classes=3)
    how = {"last_blocks": 2, "epochs": 2, "augmented": False}
    found = Linear(pooling=["mean", "max", "pooled+mean"], **how).run(net, data)
    assert [name for name in found if name.endswith("lr0.001/top1")] == [
        f"linear/{name}/lr0.001/top1" for name in ("pooled", "max")
    ]
    said = capsys.readouterr().out.splitlines()
    kind = type(net).__name__
    assert said == [
        f"linear probe: pooling={name} of {kind} is nothing else than pooled, which is tried once"
        for name in ("mean", "pooled+mean")
    ]
    assert Linear(pooling="mean", **how).run(net, data) == Linear(**how).run(net, data)
    raw = Linear(pooling=list(POOLINGS), **how).run(RawPixels(4), data)  # one region, which is all of it
    assert raw == Linear(**how).run(RawPixels(4), data)


def test_it_notes_which_images_are_right() -> None:
    data = EvaluationData([images_of(range(24))], [images_of(range(9), seed=1)], num_classes=3)
    probe = Linear(last_blocks=[1, 2], lr=[0.001, 3.0], epochs=4, augmented=False)
    found = probe.run(encoder(), data)
    assert found["linear/top1"] == pytest.approx(data.answers["linear/top1"].double().mean().item())
    best = data.answers["linear/best_on_query/top1"].double().mean().item()
    assert found["linear/best_on_query/top1"] == pytest.approx(best)
    each = [found[f"linear/blocks{n}/lr{lr:g}/top1"] for n in (1, 2) for lr in (0.001, 3.0)]
    assert found["linear/best_on_query/top1"] == max(each)
    assert found["linear/best_blocks"] in (1, 2)


def test_the_query_has_no_say_in_the_choice() -> None:
    """The same probe on a query whose labels are all wrong chooses the same classifier."""
    images, labels = images_of(range(9), seed=1)
    probe, net = Linear(last_blocks=2, lr=[0.001, 3.0], epochs=4, augmented=False), encoder()
    chosen = [
        probe.run(net, EvaluationData([images_of(range(24))], [(images, truth)], num_classes=3))
        for truth in (labels, (labels + 1) % 3)
    ]
    assert chosen[0]["linear/best_lr"] == chosen[1]["linear/best_lr"]
    assert chosen[0]["linear/held_out/top1"] == chosen[1]["linear/held_out/top1"]
    assert chosen[0]["linear/top1"] > chosen[1]["linear/top1"]


def test_names_of_a_choice() -> None:
    on_query, rehearsed = [TopK(0.5, 1.0), TopK(0.9, 1.0)], [TopK(0.7, 1.0), TopK(0.6, 1.0)]
    assert probe_metrics([(4, 0.1, "pooled")], on_query[:1]) == {"linear/top1": 0.5, "linear/top5": 1.0}
    assert probe_metrics([(4, 0.1, "pooled"), (4, 1.0, "pooled")], on_query) == {
        "linear/top1": 0.9,
        "linear/top5": 1.0,
        "linear/lr0.1/top1": 0.5,
        "linear/lr1/top1": 0.9,
        "linear/best_lr": 1.0,
    }
    assert probe_metrics([(1, 0.1, "pooled"), (4, 0.1, "pooled")], on_query, rehearsed) == {
        "linear/top1": 0.5,
        "linear/top5": 1.0,
        "linear/best_on_query/top1": 0.9,
        "linear/held_out/top1": 0.7,
        "linear/blocks1/lr0.1/top1": 0.5,
        "linear/blocks4/lr0.1/top1": 0.9,
        "linear/best_lr": 0.1,
        "linear/best_blocks": 1,
    }
    assert probe_metrics([(4, 0.1, "pooled"), (4, 0.1, "pooled+mean")], on_query) == {
        "linear/top1": 0.9,
        "linear/top5": 1.0,
        "linear/pooled/lr0.1/top1": 0.5,
        "linear/pooled+mean/lr0.1/top1": 0.9,
        "linear/best_lr": 0.1,
        "linear/best_pooling": 1,
    }


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"last_blocks": [2, 2]}, "last_blocks of 1 or more, or several different ones"),
        ({"last_blocks": 0}, "last_blocks of 1 or more"),
        ({"held_out": 1.0}, "held_out above 0 and below 1"),
        ({"pooling": "token"}, "pooling of pooled, mean, max, pooled.mean, or several of them, got token"),
        ({"pooling": ["max", "max"]}, "or several of them, got"),
        ({"pooling": []}, "or several of them, got"),
        ({"batch_size": 0}, "batch_size of 1 or more"),
    ],
)
def test_what_the_probe_refuses(how, said) -> None:
    with pytest.raises(ValueError, match=said):
        Linear(**how)
