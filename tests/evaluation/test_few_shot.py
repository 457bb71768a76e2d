from __future__ import annotations

from statistics import fmean, stdev

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from esvit_pl.evaluation import EvaluationData, FewShot, fit_logistic
from esvit_pl.evaluation.few_shot import drawn
from esvit_pl.printing import say_once


def cloud(number: int, seed: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % classes
    return torch.eye(classes).repeat(1, 2)[labels] + 0.8 * torch.randn(number, 2 * classes, generator=generator), labels


BANK, QUERY = cloud(90, 0), cloud(60, 1)


def ask(evaluator: FewShot, bank=BANK, query=QUERY, **about) -> dict[str, float]:
    return evaluator.run(torch.clone, EvaluationData([bank], [query], **about))


def unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features, dim=1)


@pytest.mark.parametrize("classes", [2, 3])
def test_with_all_images_of_each_class_it_is_scikit_learns_logistic_regression(classes):
    linear_model = pytest.importorskip("sklearn.linear_model")
    bank, query = cloud(30 * classes, 0, classes), cloud(60, 1, classes)
    theirs = linear_model.LogisticRegression(C=3.0, tol=1e-10, max_iter=10_000).fit(unit(bank[0]), bank[1])
    found = ask(FewShot(n=30, draws=2, C=3.0), bank, query)
    assert found == {"few_shot/top1": pytest.approx(theirs.score(unit(query[0]), query[1])), "few_shot/spread": 0.0}
    assert 0.5 < found["few_shot/top1"] < 1


def test_with_all_images_of_each_class_it_is_the_nearest_mean():
    centroids = torch.stack([unit(BANK[0])[BANK[1] == label].mean(0) for label in range(3)])
    answers = F.cosine_similarity(QUERY[0][:, None], centroids, dim=2).argmax(1)
    found = ask(FewShot(n=30, draws=1, classifier="centroid"))
    assert found == {"few_shot/top1": pytest.approx(float((answers == QUERY[1]).float().mean()))}  # and no spread


def test_mean_and_spread_are_those_of_the_draws():
    generator = torch.Generator().manual_seed(7)
    accuracies = {1: [], 4: []}
    for _ in range(3):
        order = drawn(BANK[1], generator)
        for n, values in accuracies.items():
            few = order < n
            model = fit_logistic(unit(BANK[0][few]), BANK[1][few], C=1.0)
            answers = model.probabilities(unit(QUERY[0])).argmax(1)
            values.append(float((answers == QUERY[1]).double().mean()))
    assert ask(FewShot(n=[4, 1], draws=3, seed=7)) == {
        "few_shot/top1": pytest.approx(fmean(accuracies[4])),
        "few_shot/spread": pytest.approx(stdev(accuracies[4])),
        "few_shot/n1/top1": pytest.approx(fmean(accuracies[1])),
        "few_shot/n1/spread": pytest.approx(stdev(accuracies[1])),
    }
    assert stdev(accuracies[1]) > 0


def test_each_class_is_drawn_to_its_last_image_and_never_alike():
    labels = torch.tensor([2, 0, 2, 2, 0, 5])
    generator = torch.Generator().manual_seed(0)
    draws = [drawn(labels, generator) for _ in range(20)]
    for draw in draws:
        assert [sorted(draw[labels == label].tolist()) for label in (0, 2, 5)] == [[0, 1], [0, 1, 2], [0]]
    assert len({tuple(draw.tolist()) for draw in draws}) > 5
    first = torch.stack(draws) == 0
    assert first[:, labels == 2].any(0).all()  # each image is the first one some time


def test_classes_with_too_few_images_are_left_out_and_named(capsys):
    say_once.cache_clear()
    keep = torch.cat([torch.arange(61), torch.arange(63, 90, 3)])  # 30 of class 0, 20 of class 1 and 2
    bank = (BANK[0][keep], BANK[1][keep])
    names = ["red", "gr\x1been", "blue"]
    found = ask(FewShot(n=[1, 25, 40], classifier="centroid"), bank, class_names=names)
    assert list(found) == ["few_shot/top1", "few_shot/spread"]
    assert capsys.readouterr().out.splitlines() == [
        "few-shot: n=25 leaves out classes with fewer images: gr\\x1been (20), blue (20)",
        "few-shot: n=25 is left out, for fewer than two classes have 25 images",
        "few-shot: n=40 leaves out classes with fewer images: red (30), gr\\x1been (20), blue (20)",
        "few-shot: n=40 is left out, for fewer than two classes have 40 images",
    ]


def test_of_a_class_that_is_left_out_no_query_is_asked(capsys):
    say_once.cache_clear()
    two = BANK[1] != 1
    few = two | (torch.arange(90) < 3)  # of class 1 one image
    found = ask(FewShot(n=2, classifier="centroid"), (BANK[0][few], BANK[1][few]))
    assert capsys.readouterr().out == "few-shot: n=2 leaves out classes with fewer images: class 1 (1)\n"
    asked = QUERY[1] != 1
    expected = ask(
        FewShot(n=30, draws=1, classifier="centroid"), (BANK[0][two], BANK[1][two]), (QUERY[0][asked], QUERY[1][asked])
    )
    every = ask(FewShot(n=30, draws=1, classifier="centroid"), (BANK[0][few], BANK[1][few]))
    assert every == expected
    assert 0 < found["few_shot/top1"] < 1


def test_a_slow_classifier_says_so():
    assert FewShot().trains
    assert not FewShot(classifier="centroid").trains


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"n": 0}, "n of 1 or more, got 0"),
        ({"n": []}, r"n of 1 or more, got \[\]"),
        ({"draws": 0}, "draws of 1 or more, got 0"),
        ({"max_iterations": 0}, "max_iterations of 1 or more, got 0"),
        ({"classifier": "tree"}, "classifier logistic or centroid, got tree"),
        ({"C": 0.0}, "C above 0, got 0.0"),
    ],
)
def test_bad_settings(how, said):
    with pytest.raises(ValueError, match=said):
        FewShot(**how)


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match="needs labels, and the batches of the bank have none"):
        ask(FewShot(), BANK[0])
    with pytest.raises(ValueError, match="needs two classes with 31 images or more in the bank"):
        ask(FewShot(n=[31, 40]))
    with pytest.raises(ValueError, match="two classes or more, got 1"):
        FewShot().check(None, 1)


def dealt(images, labels):
    return DataLoader(TensorDataset(images, labels), 16, sampler=DistributedSampler(images, shuffle=False))


def two_ranks(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {
        classifier: FewShot(n=[1, 5], classifier=classifier).run(
            torch.clone, EvaluationData(dealt(*BANK), dealt(*QUERY))
        )
        for classifier in ("logistic", "centroid")
    }
    dist.destroy_process_group()
    for classifier, metrics in found.items():
        assert metrics == ask(FewShot(n=[1, 5], classifier=classifier))


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not built in")
def test_two_ranks_answer_as_one(tmp_path):
    mp.spawn(two_ranks, args=(str(tmp_path / "store"),), nprocs=2)
