"""docs/tables.py: the pages and the headers of conf/experiment show the numbers of their one home."""

from __future__ import annotations

import pytest

from docs.tables import DOCS, backbone_cells, faults, run_cells, table, with_tables, written


@pytest.mark.slow
def test_all_pages_and_headers_are_up_to_date():
    old = [path.name for path, text in written().items() if path.read_text(encoding="utf-8") != text]
    assert old == [], "run `make tables`"


def test_a_table_is_written_between_its_mark_and_the_next_empty_line():
    page = "one\n\n<!-- table: a -->\n| old |\n| older |\n\ntwo\n\n<!-- table: b -->\n\n"
    assert with_tables(page, {"a": "| new |", "b": "| b |"}) == (
        "one\n\n<!-- table: a -->\n| new |\n\ntwo\n\n<!-- table: b -->\n| b |\n\n"
    )
    with pytest.raises(KeyError, match="c"):
        with_tables("<!-- table: c -->\n\n", {})


def test_rows_by_hand():
    name, parameters, *regions, attention, _, view, both = backbone_cells("vil_tiny")
    assert (name, parameters, regions) == ("`vil_tiny`", "27.6 M", [49, 9])
    assert attention == "sliding, chunks of 7 (stages 1-2); full (stages 3-4)"
    assert (str(view), str(both)) == ("77.3 / 73.9", "77.5 / 74.5")
    assert [backbone_cells(name)[4] for name in ("resnet50", "vit_base_p16")] == ["none", "full"]
    assert run_cells("swin_small_w14_view")[1:5] == ["2 x 16 x 16", 512, 300, "-"]
    assert run_cells("swin_tiny_w7_view_region")[4] == 0


def test_what_happens_is_said_by_the_marks_of_tests_alone(tmp_path):
    rows = faults(DOCS.parent / "tests")
    page = (DOCS / "reliability.md").read_text(encoding="utf-8")
    shown = table("| fault | what happens |", sorted(rows))
    assert with_tables(page, {"faults": shown}) == page, "run `make tables`"
    assert all(len(row) == 2 and all(text and "|" not in text for text in row) for row in rows)
    (tmp_path / "test_one.py").write_text(
        "import pytest\n@pytest.mark.fault('a', 'b')\n@pytest.mark.slow\ndef test(): ...\nfault('c', 'd')\n"
    )
    assert faults(tmp_path) == {("a", "b")}
