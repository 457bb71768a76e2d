from __future__ import annotations

import pytest
import torch

from esvit_pl.evaluation import KNN, EffectiveRank, EvaluationData, Evaluator, InTurn, Logistic, RawPixels

IMAGES, LABELS = torch.eye(12).reshape(12, 3, 2, 2), torch.arange(12) % 2


def data():
    return EvaluationData([(IMAGES, LABELS)], [(IMAGES, LABELS)])


def test_each_answer_is_handed_over_before_the_next_is_asked():
    class Breaks(Evaluator):
        def run(self, encoder, data):
            raise RuntimeError("the power is gone")

    seen = []
    probes = {"rank": EffectiveRank(), "logistic": Logistic(C=1.0), "breaks": Breaks()}
    with pytest.raises(RuntimeError, match="power"):
        InTurn(probes, lambda *answer: seen.append(answer)).run(RawPixels(2), data())
    (rank, numbers, none), (logistic, _, right) = seen
    assert (rank, logistic) == ("rank", "logistic")
    assert list(numbers) == ["effective_rank"]
    assert none == {}  # it does not classify
    assert right["logistic/top1"].tolist() == [True] * 12


def test_what_it_needs_is_what_they_need():
    assert not InTurn({"rank": EffectiveRank()}, print).needs_labels
    both = InTurn({"rank": EffectiveRank(), "knn": KNN()}, print)
    assert both.needs_labels
    assert both.reads == ("pooled",)
