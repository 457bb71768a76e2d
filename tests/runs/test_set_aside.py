"""What a run keeps of its earlier part when it goes on."""

from __future__ import annotations

import torch

from esvit_pl.loggers import MetricsCSV, read_metrics
from esvit_pl.runs.set_aside import set_aside


def test_later_rows_and_checkpoints_and_the_old_config_are_kept_beside_the_new(tmp_path):
    (tmp_path / ".hydra").mkdir()
    for name in ("config.yaml", "environment.json", "results.json", ".hydra/overrides.yaml", "notes.txt"):
        (tmp_path / name).write_text(name)
    logger = MetricsCSV(tmp_path)
    for step in range(6):
        logger.log_metrics({"train/view_loss": float(step), "epoch": step // 2}, step=step)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name, step in (("epoch_000", 2), ("epoch_001", 4), ("last", 6)):
        torch.save({"esvit_pl": {}, "global_step": step}, folder / f"{name}.ckpt")
    torch.save({"weights": torch.zeros(2)}, folder / "foreign.ckpt")
    (folder / "half.ckpt").write_bytes(b"PK\x03\x04")

    lines = set_aside(tmp_path, 4)
    assert lines == [
        "rows of later steps are in metrics.1.csv now: 2",
        "checkpoints of later steps are in checkpoints.1/ now: last.ckpt",
    ]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [0, 1, 2, 3]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.1.csv")] == [4, 5]
    assert (tmp_path / "config.1.yaml").read_text() == "config.yaml"
    assert (tmp_path / ".hydra.1" / "overrides.yaml").read_text() == ".hydra/overrides.yaml"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *(".hydra.1", "config.1.yaml", "environment.1.json", "results.1.json", "notes.txt"),
        *("metrics.csv", "metrics.1.csv", "checkpoints", "checkpoints.1"),
    }
    assert sorted(path.name for path in folder.iterdir()) == [
        *("epoch_000.ckpt", "epoch_001.ckpt", "foreign.ckpt", "half.ckpt"),
    ]

    (tmp_path / "config.yaml").write_text("the second")
    assert set_aside(tmp_path, 4) == []  # from the same checkpoint again: nothing lies beyond it
    assert (tmp_path / "config.2.yaml").read_text() == "the second"
    assert not (tmp_path / "metrics.2.csv").exists()


def test_a_row_that_a_kill_cut_short_is_set_aside(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,name,value\n3,0,a,1.0\n3,0,b")
    assert set_aside(tmp_path, 4) == ["rows of later steps are in metrics.1.csv now: 1"]
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,name,value\n3,0,a,1.0\n"
    assert (tmp_path / "metrics.1.csv").read_text() == "step,epoch,name,value\n3,0,b\n"
