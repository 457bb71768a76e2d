from __future__ import annotations

import json

import pytest

from benchmarks.does_l_r_help import LOSSES, SEEDS, draw, main, table


def logged(value):
    """Rows of two epochs that end at a value."""
    return [
        {"step": 9, "epoch": 0, "knn/top1": 0.1, "correspondence/exact": 0.2},
        {"step": 19, "epoch": 1, "knn/top1": value, "correspondence/exact": 0.3},
    ]


def test_the_table_compares_seed_by_seed(tmp_path):
    ends = {"view": (0.50, 0.60, 0.70), "view_region": (0.52, 0.59, 0.74)}
    found = {(loss, seed): logged(ends[loss][seed]) for loss in LOSSES for seed in SEEDS}
    knn, exact = table(found)
    assert knn == ("k-NN", "0.600 ± 0.100", "0.617 ± 0.112", "+0.017 (-0.010 to +0.040)")
    assert exact.difference == "+0.000 (+0.000 to +0.000)"
    assert draw(found, tmp_path / "a.png").is_file()


@pytest.mark.slow
def test_what_was_stopped_goes_on_and_what_is_finished_is_left_alone(tmp_path, capsys):
    sizes = ["dataset.train_patches=8", "dataset.test_patches=4", "callbacks.correspondence.retrieval=16"]
    words = [f"out={tmp_path}/runs", "jobs=2", "trainer.max_epochs=2", "optimizer.warmup_epochs=1", *sizes]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "regions find their place" in printed
    runs = sorted((tmp_path / "runs").glob("view*-?"))
    assert len(runs) == 6
    results = {run: json.loads((run / "results.json").read_text()) for run in runs}
    assert {result["status"] for result in results.values()} == {"finished"}
    before = {run: (run / "results.json").stat().st_mtime_ns for run in runs}
    assert main(words) == 0
    assert {run: (run / "results.json").stat().st_mtime_ns for run in runs} == before
    assert capsys.readouterr().out == printed
