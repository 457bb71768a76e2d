from __future__ import annotations

import math
import os
import socket

import golden_files
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from esvit_pl.evaluation import KNN, EvaluationData, FewShot, Logistic, fit_logistic, logistic
from esvit_pl.metrics import average_precision, measure


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files.paths("evaluation_logistic"), ids=lambda path: path.stem)
@pytest.mark.parametrize("at_once", [2**26, 50], ids=["all at once", "in parts"])
def test_golden_probabilities(path, at_once, monkeypatch):
    monkeypatch.setattr(logistic, "LOGITS_AT_ONCE", at_once)
    golden = golden_files.read(path)
    tensors, model = golden.tensors, None
    for name, wanted in golden.part("probabilities").items():
        model = fit_logistic(
            tensors["train_features"],
            tensors["train_labels"],
            C=float(name),
            num_classes=golden.settings["num_classes"],
            start=model,  # warm, which changes nothing
        )
        torch.testing.assert_close(model.probabilities(tensors["test_features"]), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_is_what_scikit_learn_says(classes):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features = torch.randn(60, 5, dtype=torch.float64)
    labels = (features[:, 0] + 0.5 * torch.randn(60)).argsort().argsort() * classes // 60
    for penalty in (0.01, 1.0, 100.0):
        theirs = linear_model.LogisticRegression(C=penalty, tol=1e-10, max_iter=10_000).fit(features, labels)
        ours = fit_logistic(features, labels, C=penalty).probabilities(features)
        torch.testing.assert_close(ours, torch.tensor(theirs.predict_proba(features)), rtol=0, atol=1e-4)


def test_it_learns_in_inference_mode_too():
    with torch.inference_mode():
        features, labels = BANK[0] * 1, BANK[1] * 1
        found = fit_logistic(features, labels, C=1.0)
    torch.testing.assert_close(found.weight, fit_logistic(*BANK, C=1.0).weight)


def test_without_weight_only_the_frequencies_of_classes_are_learned():
    labels = torch.tensor([0, 0, 0, 1])
    model = fit_logistic(torch.randn(4, 3), labels, C=1e-9)
    torch.testing.assert_close(model.probabilities(torch.zeros(1, 3)), torch.tensor([[0.75, 0.25]]).double())


@pytest.mark.parametrize(
    ("features", "labels", "how", "said"),
    [
        (torch.ones(2, 3), torch.tensor([0, 1]), {"C": 0.0}, "C must be above 0, got 0.0"),
        (torch.ones(2, 3), torch.tensor([0, 0]), {"C": 1.0}, "two classes or more"),
        (
            torch.ones(2, 3),
            torch.tensor([0, 4]),
            {"C": 1.0, "num_classes": 3},
            "3 were said, and labels go from 0 to 4",
        ),
        (torch.ones(2, 3), torch.tensor([0]), {"C": 1.0}, r"got \(2, 3\), \(1,\)"),
        (torch.ones(2, 3), torch.tensor([-1, -1]), {"C": 1.0}, "needs one image or more with a label"),
        (torch.ones(2, 3), torch.tensor([[0, 2], [1, 0]]), {"C": 1.0}, r"must be 1, 0 or -1 \(unknown\)"),
        (torch.full((2, 3), math.nan), torch.tensor([0, 1]), {"C": 1.0}, "must be finite"),
    ],
)
def test_bad_input(features, labels, how, said):
    with pytest.raises(ValueError, match=said):
        fit_logistic(features, labels, **how)


# -- the evaluator


def cloud(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 3
    return torch.eye(3).repeat(1, 2)[labels] + 0.8 * torch.randn(number, 6, generator=generator), labels


BANK, QUERY = cloud(90, 0), cloud(60, 1)


def features(images):
    return images


def test_with_a_given_penalty_it_is_one_fit_of_the_bank():
    found = Logistic(C=0.5).run(features, EvaluationData([BANK], [QUERY]))
    answers = fit_logistic(*BANK, C=0.5).probabilities(QUERY[0]).argmax(1)
    assert found == {
        "logistic/top1": float((answers == QUERY[1]).double().mean()),
        "logistic/top5": 1.0,
        "logistic/C": 0.5,
    }


def test_the_penalty_is_chosen_without_a_look_at_the_query():
    found = Logistic().run(features, EvaluationData([BANK], [QUERY]))
    shuffled = Logistic().run(features, EvaluationData([BANK], [(QUERY[0], QUERY[1].flip(0))]))
    assert found["logistic/C"] == shuffled["logistic/C"]
    assert found["logistic/held_out_top1"] == shuffled["logistic/held_out_top1"]
    assert found["logistic/top1"] != shuffled["logistic/top1"]
    again = Logistic(C=found["logistic/C"]).run(features, EvaluationData([BANK], [QUERY]))
    assert again["logistic/top1"] == found["logistic/top1"]  # the whole bank was fitted again


def test_the_held_out_part_has_some_of_each_class_and_leaves_one():
    labels = torch.tensor([0] * 10 + [1] * 5 + [2])
    away = logistic.held_out(labels, 0.2, seed=0)
    assert labels[away].bincount(minlength=3).tolist() == [2, 1, 0]
    assert torch.equal(away, logistic.held_out(labels, 0.2, seed=0))
    assert not torch.equal(away, logistic.held_out(labels, 0.2, seed=1))


@pytest.mark.parametrize(("best", "found"), [(2.375, 2.375), (-0.13, -0.125), (-7.0, -6.0), (6.0, 6.0)])
def test_the_search_ends_within_an_eighth_of_a_power_of_ten(best, found):
    asked = []
    assert logistic.best_power(lambda power: asked.append(power) or -abs(power - best)) == found
    assert len(asked) == len(set(asked)) <= 15


def test_a_penalty_at_the_border_is_said(capsys):
    images, labels = torch.eye(2).repeat(20, 1), torch.arange(40) % 2  # any C will do, and the lowest is taken
    Logistic().run(features, EvaluationData([(images, labels)], [(images, labels)]))
    said = "logistic regression: C=1e-06, the border of the search, was chosen on 8 images held out\n"
    assert capsys.readouterr().out == said


def test_what_cannot_be_fitted():
    with pytest.raises(ValueError, match="needs labels, and the batches of the bank have none"):
        Logistic(C=1.0).run(features, EvaluationData([BANK[0]], [QUERY]))
    with pytest.raises(ValueError, match="no class has two images"):
        Logistic().run(features, EvaluationData([(torch.eye(3), torch.arange(3))], [QUERY]))
    for how, said in (
        ({"C": -1.0}, "C above 0"),
        ({"held_out": 1.0}, "held_out above 0"),
        ({"max_iterations": 0}, "1 or more"),
    ):
        with pytest.raises(ValueError, match=said):
            Logistic(**how)


# -- several classes in an image, and labels that nobody knows


def several(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and memberships in four classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(number, 5, generator=generator, dtype=torch.float64)
    return images, (images[:, :4] + 0.7 * torch.randn(number, 4, generator=generator) > 0.3).long()


@pytest.mark.parametrize("unknown", [False, True], ids=["all known", "some unknown"])
def test_one_against_the_rest_is_what_scikit_learn_says(unknown):
    linear_model = pytest.importorskip("sklearn.linear_model")
    images, memberships = several(80, 0)
    if unknown:
        memberships[torch.rand(80, 4) < 0.2] = -1
    for penalty in (0.05, 10.0):
        ours = fit_logistic(images, memberships, C=penalty).probabilities(images)
        for number, column in enumerate(memberships.T):
            known = column >= 0
            theirs = linear_model.LogisticRegression(C=penalty, tol=1e-10, max_iter=10_000)
            theirs.fit(images[known], column[known])
            wanted = torch.tensor(theirs.predict_proba(images)[:, 1])
            torch.testing.assert_close(ours[:, number], wanted, rtol=0, atol=1e-4)


def test_mean_average_precision_of_several_classes_chosen_on_the_val_split():
    (bank, truth), (query, asked) = several(60, 0), several(40, 1)
    data = EvaluationData([(bank, truth)], [(query, asked)], num_classes=4, metric="map11", tuned_from=40)
    found = Logistic().run(features, data)
    model = fit_logistic(bank, truth, C=found["logistic/C"])
    assert list(found) == ["logistic/map11", "logistic/C", "logistic/held_out_map11"]
    wanted = average_precision(model.probabilities(query), asked, eleven_points=True).mean()
    assert found["logistic/map11"] == pytest.approx(float(wanted))
    first = fit_logistic(bank[:40], truth[:40], C=found["logistic/C"])
    held = average_precision(first.probabilities(bank[40:]), truth[40:], eleven_points=True).mean()
    assert found["logistic/held_out_map11"] == pytest.approx(float(held), abs=1e-6)


@pytest.mark.parametrize("metric", ["per_class", "roc_auc"])
def test_the_metric_of_the_data_set(metric):
    images, labels = cloud(90, 0)
    labels = (labels == 2).long()  # two classes, one of them with twice the images
    found = Logistic(C=0.5).run(features, EvaluationData([(images, labels)], [QUERY_OF_TWO], metric=metric))
    scores = fit_logistic(images, labels, C=0.5).probabilities(QUERY_OF_TWO[0])
    assert found == {f"logistic/{metric}": measure(metric, scores, QUERY_OF_TWO[1]), "logistic/C": 0.5}


QUERY_OF_TWO = (QUERY[0], (QUERY[1] == 2).long())


def test_images_without_a_label_are_left_out():
    bank, query = (BANK[0], BANK[1].clone()), (QUERY[0], QUERY[1].clone())
    bank[1][::3], query[1][:10] = -1, -1
    found = Logistic(C=0.5).run(features, EvaluationData([bank], [query]))
    known = bank[1] >= 0
    some = EvaluationData([(bank[0][known], bank[1][known])], [(QUERY[0][10:], QUERY[1][10:])])
    assert found == Logistic(C=0.5).run(features, some)


def test_other_probes_refuse_several_classes_and_say_which_can():
    images, memberships = several(20, 0)
    data = EvaluationData([(images, memberships)], [(images, memberships)], metric="map11", num_classes=4)
    for probe, name in ((KNN(k=1), "k-NN"), (FewShot(n=1), "few-shot classification")):
        with pytest.raises(ValueError, match=rf"{name} needs one class for each image, .*several of 4; logistic reg"):
            probe.run(features, data)
    with pytest.raises(ValueError, match="logistic regression needs one class for each image"):
        Logistic(C=1.0).run(features, EvaluationData([(images, memberships)], [(images, memberships)]))


def loader(images, labels):
    """Batches of this rank, which has every second image; of one image the second rank has none."""
    data = TensorDataset(images[dist.get_rank() :: 2], labels[dist.get_rank() :: 2])
    return DataLoader(data, 15, sampler=OfThisRank(data))


class OfThisRank(SequentialSampler):
    ranks = 2


def work(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = Logistic().run(features, EvaluationData(loader(*BANK), loader(*QUERY)))
    few = Logistic(C=1.0).run(features, EvaluationData(loader(*BANK), loader(QUERY[0][:1], QUERY[1][:1])))
    dist.destroy_process_group()
    assert found == pytest.approx(Logistic().run(features, EvaluationData([BANK], [QUERY])))
    assert few == Logistic(C=1.0).run(features, EvaluationData([BANK], [(QUERY[0][:1], QUERY[1][:1])]))


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not built in")
def test_two_ranks_answer_as_one():
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        number = port.getsockname()[1]
    mp.spawn(work, (number,), nprocs=2)
