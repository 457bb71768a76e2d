from __future__ import annotations

import pytest
import torch

from esvit_pl.evaluation import (
    KNN,
    EffectiveRank,
    EvaluationData,
    Evaluator,
    InTurn,
    Linear,
    Logistic,
    RawPixels,
    RegionDiversity,
)

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


def test_one_pass_over_the_bank_gives_all_kinds_of_features():
    class Read(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    bank, query = (Read([(IMAGES, LABELS)]) for _ in range(2))
    probes = {
        "knn": KNN(k=1, bank_dtype="float16"),
        "logistic": Logistic(C=1.0),
        "linear": Linear(epochs=1, last_blocks=1, augmented=False, batch_size=6),
        "diversity": RegionDiversity(),
    }
    both = InTurn(probes, lambda *answer: None)
    assert both.reads == ("pooled", 1, "regions")
    assert both.reads_bank == ("float16", "pooled", 1, "regions")
    both.run(RawPixels(2), EvaluationData(bank, query, num_classes=2))
    assert (bank.passes, query.passes) == (1, 1)


def test_what_it_needs_is_what_they_need():
    assert not InTurn({"rank": EffectiveRank()}, print).needs_labels
    both = InTurn({"rank": EffectiveRank(), "knn": KNN()}, print)
    assert both.needs_labels
    assert both.reads == ("pooled",)
