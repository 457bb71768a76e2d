"""Tables of several encoders."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from esvit_pl.runs.comparison import Answer, Comparison


def answer(right, metric="knn/top1", **others):
    right = np.array(right, dtype=bool)
    return Answer({metric: float(right.mean()), **others}, {metric: right})


@pytest.fixture
def two():
    """100 images: the second encoder is right on the same ones and on 20 more."""
    one, other = np.arange(100) < 50, np.arange(100) < 70
    rows = {"a|b": {"knn": answer(one), "rankme": Answer({"rankme": 12.345}, {})}, "c_d": {"knn": answer(other)}}
    return Comparison(rows)


def test_a_paired_difference_leaves_out_what_is_hard_for_both(two):
    """Of 100 images 20 tell the encoders apart, all in favour of the second: the interval is that of 20 in 100, and
    much narrower than the two accuracies' intervals are."""
    (found,) = two.differences()
    assert (found.one, found.other) == ("c_d", "a|b")
    assert found.less == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.12, abs=0.011), pytest.approx(0.28, abs=0.011))
    assert found.real
    low, high = two.interval(two.rows["a|b"]["knn"], "knn/top1")
    assert (low, high) == (pytest.approx(0.40, abs=0.011), pytest.approx(0.60, abs=0.011))


def test_equal_encoders_do_not_differ():
    right = np.arange(50) % 2 == 0
    (found,) = Comparison({"a": {"knn": answer(right)}, "b": {"knn": answer(right)}}).differences()
    assert (found.less, found.low, found.high, found.real) == (0, 0, 0, False)


def test_images_that_are_alike_widen_the_intervals():
    """Ten groups of ten equal images are as good as ten images."""
    right = np.repeat(np.arange(10) < 5, 10)
    groups = np.repeat(np.arange(10), 10)
    alone = Comparison({"a": {"knn": answer(right)}}).interval(answer(right), "knn/top1")
    together = Comparison({"a": {"knn": answer(right)}}, groups).interval(answer(right), "knn/top1")
    assert alone == (pytest.approx(0.40, abs=0.011), pytest.approx(0.60, abs=0.011))
    assert together == (pytest.approx(0.2), pytest.approx(0.8))


def test_where_all_are_right_the_interval_is_wilsons():
    low, high = Comparison({}).interval(answer([True] * 14), "knn/top1")
    assert (round(low, 3), high) == (0.785, 1.0)


def test_only_what_is_compared_is_compared(two):
    rows = {"raw pixels": {"knn": answer(np.arange(100) < 10)}, **two.rows}
    differences = Comparison(rows, compared=["a|b", "c_d"]).differences()
    assert [(each.one, each.other) for each in differences] == [("c_d", "a|b")]


def test_measures_of_each_block_have_a_table_of_their_own():
    numbers = {"rankme/block2": 20.5, "lidar/block2": 9.0, "rankme/block1": 31.0}
    rows = {"a|b": {"per_block": Answer(numbers, {})}, "c": {"per_block": Answer({"rankme/block1": 8.0}, {})}}
    assert Comparison(rows).markdown().split("\n\n")[1].splitlines() == [
        "|  | RankMe | LiDAR |",
        "| --- | ---: | ---: |",
        r"| a\|b, block 1 | 31 |  |",
        r"| a\|b, block 2 | 20.5 | 9 |",
        "| c, block 1 | 8 |  |",
    ]
    assert Comparison(rows).latex().count("tabular") == 4


def test_the_table_in_every_form(two, tmp_path):
    files = {path.name: path.read_text() for path in two.write(tmp_path / "new")}
    assert files["table.md"].splitlines() == [
        "|  | k-NN | RankMe |",
        "| --- | ---: | ---: |",
        r"| a\|b | 50.0 (40.0-60.0) | 12.3 |",
        "| c_d | 70.0 (61.0-79.0) |  |",
    ]
    assert files["table.tex"].splitlines()[4:6] == [
        r"a|b & 50.0 (40.0-60.0) & 12.3 \\",
        r"c\_d & 70.0 (61.0-79.0) &  \\",
    ]
    rows = list(csv.DictReader(files["table.csv"].splitlines()))
    assert [(row["row"], row["metric"], row["value"]) for row in rows] == [
        ("a|b", "knn/top1", "0.5"),
        ("a|b", "rankme", "12.345"),
        ("c_d", "knn/top1", "0.7"),
    ]
    assert rows[1]["low"] == ""
    results = json.loads(files["results.json"])
    assert results["rows"] == {"a|b": {"knn/top1": 0.5, "rankme": 12.345}, "c_d": {"knn/top1": 0.7}}
    assert results["intervals"]["a|b"]["knn/top1"] == [pytest.approx(0.4, abs=0.011), pytest.approx(0.6, abs=0.011)]
    assert [difference["real"] for difference in results["differences"]] == [True]
    assert len(files["differences.csv"].splitlines()) == 2
    assert two.text().splitlines()[0].split() == ["k-NN", "RankMe"]
    assert two.sentences() == ["knn/top1: c_d less a|b +20.0 (+12.0 to +28.0), a real difference"]
