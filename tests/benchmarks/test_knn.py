from __future__ import annotations

import pytest

from benchmarks.knn import made, searches, straightforward
from esvit_pl.metrics import knn_accuracy


def test_both_forms_answer_alike_and_a_bank_in_half_precision_is_smaller():
    found = list(searches(bank_images=3000, query_images=300, channels=64))
    assert [search.part for search in found] == [
        "k=20, float32",
        "k=20,10,100,200, float32",
        "k=20,10,100,200, float16",
    ]
    assert [search.error < 1e-6 for search in found[:2]] == [True, True]
    assert found[2].error < 0.1
    assert all(
        search.straight_for_50_000_seconds == pytest.approx(search.straight_seconds * 50_000 / 300) for search in found
    )
    bank, query = made(3000, 64, 1, "cpu"), made(300, 64, 2, "cpu")
    accuracy = knn_accuracy(*bank, *query, k=20)[20]
    assert 1 / 1000 < accuracy.top1 < accuracy.top5 < 1
    assert straightforward(bank, query, [20]).tolist() == [pytest.approx([*accuracy])]
