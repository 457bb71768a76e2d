from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from esvit_pl.profiling.report import Report, as_markdown, as_words, shown, write_json


class Row(NamedTuple):
    part: str
    straight_seconds: float
    our_seconds: float
    ratio: float
    our_bytes: int | None = None
    error: float | None = None


ROWS = [Row("one", 0.25, 0.125, 2.0, 3 * 2**20), Row("both", 12.0, 10.0, 1.2)]


def test_a_table_shows_units_and_leaves_out_what_nobody_measured():
    assert as_markdown(ROWS).splitlines() == [
        "| part | straightforward | ours   | ratio | memory, ours |",
        "|------|-----------------|--------|-------|--------------|",
        "| one  | 250 ms          | 125 ms | 2.00  | 3 MiB        |",
        "| both | 12.0 s          | 10.0 s | 1.20  |              |",
    ]
    assert as_markdown([]) == "no rows"


@pytest.mark.parametrize(
    ("field", "value", "cell"),
    [
        ("seconds", 0.0301, "30 ms"),
        ("peak_bytes", 2**30, "1024 MiB"),
        ("error", 3e-7, "3e-07"),
        ("images_per_second", 81.66, "81.7"),
        ("wait_share", 0.256, "26 %"),
        ("parameters", 28_288_354, "28.3 M"),
        ("flops", 4.5e9, "4.50 G"),
        ("batch", 16, "16"),
        ("ratio", None, ""),
    ],
)
def test_units_follow_from_the_end_of_the_name(field, value, cell):
    assert shown(field, value) == cell


def test_json_holds_plain_values_of_every_row(tmp_path):
    report = Report("loss", "batch 2", {"cpu": "EPYC", "threads": 2, "torch": "2.14"}, iter(ROWS)).finished()
    path = write_json([report], tmp_path / "new" / "loss.json")
    (read,) = json.loads(path.read_text())
    assert read["machine"] == {"cpu": "EPYC", "threads": 2, "torch": "2.14"}
    assert [Row(**row) for row in read["rows"]] == ROWS
    assert (read["benchmark"], read["what"]) == ("loss", "batch 2")
    assert report.title() == "loss: batch 2\nEPYC, 2 threads, torch 2.14"


def test_one_thread_is_no_threads():
    assert as_words({"cpu": "EPYC", "threads": 1}) == "EPYC, 1 thread"
