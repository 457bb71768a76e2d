from __future__ import annotations

import csv
import json

import pytest

from esvit_pl.runs.transfer import Line, Transfer


def numbers(metric, value, penalty=1.0):
    return {f"logistic/{metric}": value, "logistic/C": penalty, f"logistic/held_out_{metric}": value}


def table(**how):
    lines = [
        Line("DTD", "top1", {"a": numbers("top1", 0.7), "b": numbers("top1", 0.5), "sup": numbers("top1", 0.6)}),
        Line("VOC2007", "map11", {x: numbers("map11", y, 1e6) for x, y in (("a", 0.9), ("b", 0.8), ("sup", 0.8))}),
        Line("Pets", "per_class", {}, "get it: by hand"),
    ]
    return Transfer("quick", ["a", "b", "sup"], lines, **how)


def test_means_and_wins_by_hand():
    found = table(supervised="sup")
    assert [found.mean(name) for name in found.backbones] == pytest.approx([0.8, 0.65, 0.7])
    assert [found.wins(name) for name in found.backbones] == [2, 0, None]  # an equal number is no win
    assert found.cells() == [
        ["", "metric", "a", "b", "sup"],
        ["DTD", "accuracy", "70.0", "50.0", "60.0"],
        ["VOC2007", "11-point mAP", "90.0", "80.0", "80.0"],
        ["Pets", "mean per class", "missing", "missing", "missing"],
        ["mean of 2 of 3", "", "80.0", "65.0", "70.0"],
        ["wins over sup", "", "2 of 2", "0 of 2", ""],
    ]


def test_without_a_supervised_backbone_nothing_is_counted():
    assert table().cells()[-1][0] == "mean of 2 of 3"
    assert table().wins("a") is None


def test_what_is_said_beside_it():
    said = table(note="who knows").sentences()
    assert said[0] == "missing: Pets; get it: by hand"
    assert said[1] == "VOC2007, a: C=1e+06 lies at the border of the search"
    assert len([line for line in said if "border" in line]) == 3
    assert "mean 77.29 supervised, 80.66 EsViT, 16 wins; 17 of 18 is Swin-S, read off a figure" in said[-2]
    assert said[-2].endswith("Which 18 they are is not verified")
    assert said[-1] == "who knows"
    given = {"a": {"logistic/top1": 0.5, "logistic/C": 1e6}}  # was not looked for
    assert not any("border" in line for line in Transfer("quick", ["a"], [Line("DTD", "top1", given)]).sentences())


def test_files(tmp_path):
    written = table(supervised="sup").write(tmp_path / "out")
    assert [path.name for path in written] == ["table.csv", "table.md", "table.tex", "results.json"]
    with written[0].open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"data set": "DTD", "row": "a", "metric": "logistic/top1", "value": "0.7"}
    assert rows[-1] == {"data set": "Pets", "row": "", "metric": "missing", "value": ""}
    assert r"\begin{tabular}{lrrrr}" in written[2].read_text()
    results = json.loads(written[3].read_text())
    assert results["missing"] == {"Pets": "get it: by hand"}
    assert results["wins"] == {"a": 2, "b": 0, "sup": None}
