"""``python -m benchmarks``, as it is typed in a checkout."""

from __future__ import annotations

import json

import pytest
from toys import WORDS as TOY

from benchmarks.__main__ import BENCHMARKS, main
from esvit_pl.commands.bench import IN_A_CHECKOUT


def test_benchmarks_print_tables_and_write_json(commands, tmp_path):
    outcome = commands.run("benchmarks", "loss", "tokens", "step", f"out={tmp_path}/bench", *TOY)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    heading = next(line for line in lines if line.startswith("loss: "))
    assert "64 prototypes of width 8, batch 1, views of 2 x 16 + 2 x 4 regions" in heading
    (step,) = json.loads((tmp_path / "bench" / "step.json").read_text())
    assert step["what"].startswith("swin_micro_32px, 64 prototypes, batch 1, views of 2 x 32 + 2 x 16 px, 32-true")
    assert [row["part"] for row in step["rows"]][-1] == "whole step"
    for name in ("loss", "tokens", "step"):
        assert str(tmp_path / "bench" / f"{name}.json") in lines
        (report,) = json.loads((tmp_path / "bench" / f"{name}.json").read_text())
        errors = [row["error"] for row in report["rows"] if row["error"] is not None]
        assert errors
        assert max(errors) < 1e-5


def test_a_step_has_the_switches_of_its_training(commands, tmp_path):
    outcome = commands.run("benchmarks", "step", "module.grad_checkpointing=true", f"out={tmp_path}", *TOY)
    assert outcome.code == 0, outcome.err
    (step,) = json.loads((tmp_path / "step.json").read_text())
    assert "32-true, module.grad_checkpointing=true; memory" in step["what"]


def test_a_gpu_on_paper(commands, tmp_path):
    words = [word for word in TOY if not word.startswith("batch_size")]
    outcome = commands.run("benchmarks", "roofline", "gpu=h100", "datamodule.batch_size=16", f"out={tmp_path}", *words)
    assert outcome.code == 0, outcome.err
    assert "h100 with 989 TFLOP/s and 3350 GB/s" in outcome.out
    (report,) = json.loads((tmp_path / "roofline.json").read_text())
    assert "swin_micro_32px, 64 prototypes, batch 16, views of 2 x 32 + 2 x 16 px" in report["what"]
    together = report["rows"][-1]
    assert together["images_per_second"] == pytest.approx(16 / together["at_least_seconds"])
    given = ["gpu=h100", "peak_tflops=1", "peak_gbytes=2", f"out={tmp_path}"]
    assert "with 1 TFLOP/s and 2 GB/s" in commands.run("benchmarks", "roofline", *given, *TOY).out


def test_switches_are_measured_on_the_backbone_of_the_config(commands, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("benchmarks.switches.rows", lambda **how: seen.update(how) or iter(()))
    monkeypatch.setattr("esvit_pl.profiling.report.as_markdown", str)
    outcome = commands.run("benchmarks", "switches", f"out={tmp_path}", *TOY)
    assert outcome.code == 0, outcome.err
    assert (seen["backbone"], seen["embed_dim"], list(seen["sides"])) == ("swin", 8, [32, 32, 16, 16])
    assert (seen["batch_size"], seen["repeats"], seen["autocast"]) == (1, 1, None)


def test_crops_are_measured_in_whole_batches(commands, tmp_path):
    outcome = commands.run("benchmarks", "crops", f"out={tmp_path}", *TOY)
    assert outcome.code == 0, outcome.err
    (report,) = json.loads((tmp_path / "crops.json").read_text())
    assert {row["image"] for row in report["rows"]} == {"500 x 375", "2000 x 1500"}
    assert "views of 2 x 32 + 2 x 16 px of JPEGs made here, batch 1" in report["what"]


def test_a_bank_as_wide_as_the_backbone(commands, tmp_path):
    outcome = commands.run("benchmarks", "knn", "bank_images=400", "query_images=10", f"out={tmp_path}", *TOY)
    assert outcome.code == 0, outcome.err
    (report,) = json.loads((tmp_path / "knn.json").read_text())
    assert "made features of 16 channels, a bank of 400 images, 10 queries" in report["what"]
    assert len(report["rows"]) == 3


@pytest.mark.slow
def test_the_start_on_many_images(commands, tmp_path):
    outcome = commands.run("benchmarks", "listing", "files=60000", f"out={tmp_path}", *TOY)
    assert outcome.code == 0, outcome.err
    (report,) = json.loads((tmp_path / "listing.json").read_text())
    first, second = report["rows"]
    assert (first["start"], second["start"]) == ("first", "second")
    assert second["until_ready_seconds"] < first["until_ready_seconds"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["los"], "there is no benchmark los; there are loss,"),
        (["tokens", "backbone=cvt_tiny_w7"], "tokens measures the padding of Swin, got backbone.name=cvt"),
        (["roofline", "trainer=cpu"], "a GPU's data sheet, and there is none of a CPU; choose gpu= one of B200, H200,"),
        (["roofline", "gpu=GTX"], "there is none of GTX; choose gpu="),
    ],
)
def test_what_is_refused(commands, words, said):
    outcome = commands.run("benchmarks", *words)
    assert outcome.code == 1
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_without_words_it_names_every_benchmark(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    main()
    assert set(BENCHMARKS) <= {line.strip().partition(" ")[0] for line in capsys.readouterr().out.splitlines()}
    assert set(BENCHMARKS) == set(IN_A_CHECKOUT)
