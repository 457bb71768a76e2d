"""k-NN as an evaluator: the accuracies of the pure function."""

from __future__ import annotations

import pytest
import torch

from esvit_pl.evaluation import KNN, EvaluationData
from esvit_pl.metrics import knn_accuracy

DRAW = torch.Generator().manual_seed(0)
BANK, QUERY = ((torch.randn(n, 4, generator=DRAW), torch.randint(0, 3, (n,), generator=DRAW)) for n in (30, 21))


def test_says_what_the_pure_function_says_of_the_encoders_features():
    data = EvaluationData(bank=[BANK], query=[(QUERY[0][:9], QUERY[1][:9]), (QUERY[0][9:], QUERY[1][9:])])
    expected = knn_accuracy(-BANK[0], BANK[1], -QUERY[0], QUERY[1], k=[2, 9])
    assert KNN(k=[2, 9], prefix="mine", feature="raw").run(lambda x: -x, data) == {
        "mine/top1": expected[2].top1,
        "mine/top5": expected[2].top5,
        "mine/raw/k9/top1": expected[9].top1,
        "mine/raw/k9/top5": 1.0,
    }
    assert 0 < expected[2].top1 < 1


def test_bad_input():
    with pytest.raises(ValueError, match="batches of the query have none; give unpack="):
        KNN(k=1).run(lambda x: x, EvaluationData(bank=[BANK], query=[QUERY[0]]))
    with pytest.raises(ValueError, match="this evaluator needs bank images; give EvaluationData bank="):
        KNN(k=1).run(lambda x: x, EvaluationData(query=[QUERY]))
    with pytest.raises(ValueError, match="an accuracy needs one query image or more, got none"):
        KNN(k=1).run(lambda x: x, EvaluationData(bank=[BANK], query=[]))
