"""Hostile names in every place that shows them."""

from __future__ import annotations

import ast
import csv
import re
from pathlib import Path

import pytest

from esvit_pl.checkpoints.model_card import model_card
from esvit_pl.loggers import MetricsCSV
from esvit_pl.printing import say
from esvit_pl.runs.reading import Run
from esvit_pl.runs.table import report, run_table, write_csv
from esvit_pl.safe_text import for_csv, for_markdown, for_terminal

FORMULA = '=HYPERLINK("https://a.example")'
HTML = "<script>alert(1)</script> [a](javascript:b) ![](https://a.example/x.png) | `c`"


@pytest.mark.parametrize("sign", ["\x1b[2J", "\r", "\n", "\x07", "\x9b", "\u202e", "\u2028"])
def test_a_terminal_gets_no_control_characters(sign):
    assert for_terminal(f"a{sign}b").isprintable()


@pytest.mark.parametrize("text", [FORMULA, "+cmd", "-cmd", "@SUM(1)", "\t=1", "\r=1", " =1", "\n@x", "＝1"])
def test_a_cell_is_no_formula(text):
    assert for_csv(text) == f"'{text}"
    assert [for_csv(number) for number in ("-1", "+2.5", "-1e-3", "3")] == ["-1", "+2.5", "-1e-3", "3"]


def test_tables_of_runs_and_metrics(tmp_path):
    runs = [
        Run(tmp_path / f"\x1b[31m{i}", {"x": FORMULA + str(i)}, "failed", results={FORMULA: 1.0}, error="a\x1b[2Jb")
        for i in range(2)
    ]
    text = report(runs, ["*"], base=tmp_path)
    assert "\x1b" not in text
    write_csv(run_table(runs, ["*"], base=tmp_path), tmp_path / "a.csv")
    MetricsCSV(tmp_path).log_metrics({FORMULA: 1.0}, step=0)
    for name in ("a.csv", "metrics.csv"):
        with (tmp_path / name).open(newline="") as file:
            assert not [cell for row in csv.reader(file) for cell in row if cell.startswith("=")]


@pytest.mark.parametrize("name", ["../a.csv", "/tmp/a.csv", ".bashrc", "a.sh"])
def test_metrics_are_written_into_their_folder_alone(name, tmp_path):
    with pytest.raises(ValueError, match="must be such as metrics.csv"):
        MetricsCSV(tmp_path, name)


def test_a_card_shows_made_up_texts_as_texts():
    about = {
        "source": HTML,
        "network": HTML,
        "format": HTML,
        "epoch": 1,
        "config": {"loss": {HTML: HTML}, "dataset": {"_target_": HTML, HTML: HTML}, "trainer": {"precision": HTML}},
    }
    card = model_card("a/b", {"backbone": {"name": HTML, "x": HTML}, "about": about}, architecture="resnet18")
    assert "<script" not in card
    text = re.sub(r"`[^`\n]*`", "", card.replace("\\`", ""))  # nothing is a link in code style
    assert "](javascript:" not in text.replace("\\](", "")
    assert "![](" not in text.replace("\\](", "")
    assert for_markdown("swin_tiny_w7 0.5, 8") == "swin_tiny_w7 0.5, 8"


def test_everything_is_printed_through_one_door():
    source = Path(__file__).parents[1] / "src" / "esvit_pl"
    calls = [
        f"{path.relative_to(source)}:{node.lineno}"
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert [call.partition(":")[0] for call in calls] == ["printing.py"], "print with esvit_pl.printing.say"


def test_the_door_keeps_lines_and_shows_what_one_cannot_see(capsys):
    say("a\x1b[2J\nb\u202ec\r\udcffd")
    assert capsys.readouterr().out == "a\\x1b[2J\nb\\u202ec\\r\\udcffd\n"
