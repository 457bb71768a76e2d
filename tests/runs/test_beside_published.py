"""Our runs beside published results: only what repeats them stands there, and what does not is said."""

from __future__ import annotations

from pathlib import Path

from esvit_pl.runs.beside_published import IMAGENET, LINEAR, left_out, published_table
from esvit_pl.runs.reading import Run

NAME = "swin_tiny_w7_view_region"
DONE = {"status": "finished", "images": {**IMAGENET, "train": 1_281_167}, "results": {"knn/top1": 0.7123, LINEAR: 0.75}}


def run(folder: str = "logs/mine", **changes) -> Run:
    overrides = {"experiment": NAME, "dataset.root": "/data", "seed": "3"}
    return Run(Path(folder), **{"overrides": overrides, **DONE, **changes})


def rows(*runs: Run) -> list[dict]:
    table = published_table(runs, base="logs")
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_without_runs_ours_is_empty():
    assert all(row["linear, ours"] is row["k-NN, ours"] is row["run"] is None for row in rows())
    (row,) = (row for row in rows() if row["experiment"] == NAME)
    assert (row["linear, published"], row["k-NN, published"], row["source"]) == ("78.1", "75.7", "Table 1")
    assert "DINO DeiT-S/16" in {row["experiment"] for row in rows()}


def test_a_run_that_repeats_one_stands_beside_it_with_what_else_was_typed():
    mine = [row for row in rows(run(), run("logs/other")) if row["run"]]
    assert [(row["experiment"], row["linear, ours"], row["k-NN, ours"]) for row in mine] == [(NAME, "75.0", "71.2")] * 2
    assert [row["run"] for row in mine] == ["mine seed=3", "other seed=3"]


def test_a_probe_of_a_checkpoint_belongs_to_the_training_that_wrote_it(tmp_path):
    (tmp_path / "training" / ".hydra").mkdir(parents=True)
    (tmp_path / "training" / ".hydra" / "overrides.yaml").write_text(f"- experiment={NAME}\n")
    (tmp_path / "training" / "results.json").write_text("{}")
    probe = run(overrides={"ckpt_path": str(tmp_path / "training"), "trainer": "ddp"})
    (row,) = (row for row in rows(probe) if row["run"])
    assert (row["experiment"], row["linear, ours"]) == (NAME, "75.0")


def test_a_run_that_does_not_repeat_it_is_named_with_the_reason():
    small = run(images={"bank": 1000, "query": 50_000})
    young, blind = run(status="running"), run(results={"linear/top1": 0.7})
    assert not [row for row in rows(small, young, blind) if row["run"]]
    said = left_out([small, young, blind, run(), run(overrides={"experiment": "embedded"})], base="logs")
    assert said == [
        f"mine (experiment={NAME}) is not in the table: it was measured on other images "
        "(bank 1,000 of 1,281,167 images, query 50,000 of 50,000 images)",
        f"mine (experiment={NAME}) is not in the table: its status is 'running'",
        f"mine (experiment={NAME}) is not in the table: it has measured neither {LINEAR} nor knn/top1",
    ]
