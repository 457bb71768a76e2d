from __future__ import annotations

import json

import pytest

from benchmarks.does_l_r_help import LOSSES, SEEDS, Kept, draw, main, paired, read, sentences, table
from esvit_pl.runs.reading import read_run

ENDS = {"view": (0.50, 0.60, 0.70), "view_region": (0.52, 0.59, 0.74)}


def kept(value, tiles):
    """A training of two epochs that ends at a value."""
    last = {"knn/top1": value, "correspondence/exact": 0.3}
    curves = {"knn/top1": ([1, 2], [0.1, value]), "correspondence/exact": ([1, 2], [0.2, 0.3])}
    return Kept(last, curves, tiles, 1.5)


def found(*, both, view):
    tiles = {"view": view, "view_region": both}
    return {(loss, seed): kept(ENDS[loss][seed], tiles[loss]) for loss in LOSSES for seed in SEEDS}


def test_the_table_compares_seed_by_seed(tmp_path):
    trainings = found(view={"a": (1, 2)}, both={"a": (1, 2)})
    knn, exact = table(trainings)
    assert knn == ("k-NN", "0.600 ± 0.100", "0.617 ± 0.112", "+0.017 (-0.010 to +0.040)")
    assert exact.difference == "+0.000 (+0.000 to +0.000)"
    assert draw(trainings, tmp_path / "a.png").is_file()


def test_the_interval_of_the_difference_is_that_of_tiles():
    alike = found(view={"a": (1, 4), "b": (2, 4)}, both={"a": (2, 4), "b": (3, 4)})
    assert paired(alike) == (0.25, 0.25, 0.25)  # one patch of four in each tile
    opposed = found(view={"a": (0, 4), "b": (4, 4)}, both={"a": (4, 4), "b": (0, 4)})
    assert paired(opposed) == (0.0, -1.0, 1.0)  # two tiles, drawn with repeats: a quarter of draws are one tile twice
    assert sentences(opposed)[0].endswith("+0.000, 95 % interval -1.000 to +1.000 (2 tiles)")


@pytest.mark.slow
def test_what_was_stopped_goes_on_and_what_is_finished_is_left_alone(tmp_path, capsys):
    sizes = ["dataset.train_windows=8", "dataset.test_windows=4", "callbacks.correspondence.retrieval=16"]
    words = [f"out={tmp_path}/runs", "jobs=2", "trainer.max_epochs=2", "optimizer.warmup_epochs=1", *sizes]
    words += [f"kept={tmp_path}/kept"]
    assert main([*words, "seeds=0"]) == 0
    capsys.readouterr()
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "regions find their place" in printed
    assert "linear probe" in printed
    runs = sorted((tmp_path / "runs").glob("view*-?"))
    assert len(runs) == 6
    results = {run: json.loads((run / "results.json").read_text()) for run in runs}
    assert {result["status"] for result in results.values()} == {"finished"}
    for run in runs:
        tiles = read(tmp_path / "kept" / f"{run.name}.json").tiles.values()
        right, patches = (sum(counts) for counts in zip(*tiles, strict=True))
        assert right / patches == pytest.approx(read_run(run).results["knn/top1"])
    before = {run: (run / "results.json").stat().st_mtime_ns for run in runs}
    assert main(words) == 0
    assert {run: (run / "results.json").stat().st_mtime_ns for run in runs} == before
    assert capsys.readouterr().out == printed
