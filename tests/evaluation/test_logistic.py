from __future__ import annotations

import math

import golden_files
import pytest
import torch

from esvit_pl.evaluation import fit_logistic, logistic


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
        (torch.full((2, 3), math.nan), torch.tensor([0, 1]), {"C": 1.0}, "must be finite"),
    ],
)
def test_bad_input(features, labels, how, said):
    with pytest.raises(ValueError, match=said):
        fit_logistic(features, labels, **how)
