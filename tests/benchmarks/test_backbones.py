from __future__ import annotations

from pathlib import Path

import pytest

from esvit_pl.benchmarks.backbones import as_markdown, rows

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


@pytest.fixture(scope="module")
def table():
    return rows()


def test_the_page_shows_the_table_that_the_command_prints(table):
    assert as_markdown(table) in PAGE.read_text(encoding="utf-8")


def test_numbers_of_the_paper(table):
    named = {row.name: row for row in table}
    swin = named["swin_tiny_w14"]
    assert (swin.view, swin.view_region, swin.regions) == ("77.9 / 75.5", "78.7 / 77.0", (49, 9))
    assert round(swin.parameters / 1e6) == 28
    assert named["deit_small_p8"].regions == (784, 144)
    assert named["vil_tiny"].attention == "sliding, chunks of 7 (stages 1-2); full (stages 3-4)"
    assert [named[name].attention for name in ("resnet50", "vit_base_p16")] == ["none", "full"]
