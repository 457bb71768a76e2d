from __future__ import annotations

import json
import re

import pytest

from esvit_pl.commands.bench import BENCHMARKS, in_words

TOY = [
    "backbone=swin_micro_32px",
    "backbone.embed_dim=8",
    "backbone.num_heads=[1,2]",
    "augment.global_size=32",
    "augment.local_size=16",
    "augment.num_local=2",
    "loss.num_prototypes=64",
    "loss.hidden_dim=16",
    "loss.out_dim=8",
    "trainer=cpu",
    "batch_size=1",
    "repeats=1",
]


def test_benchmarks_print_tables_and_write_json(commands, tmp_path):
    outcome = commands.run("bench", "loss", "tokens", "step", f"out={tmp_path}/bench", *TOY)
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
    outcome = commands.run("bench", "step", "module.grad_checkpointing=true", f"out={tmp_path}", *TOY)
    assert outcome.code == 0, outcome.err
    (step,) = json.loads((tmp_path / "step.json").read_text())
    assert "32-true, module.grad_checkpointing=true; memory" in step["what"]


def test_a_recipe_says_what_bounds_it(commands, tmp_path):
    words = ["datamodule=device_color", "datamodule.num_workers=0", "peak_tflops=0.1", f"out={tmp_path}"]
    outcome = commands.run("bench", "recipe", *words, *TOY)
    assert outcome.code == 0, outcome.err
    step, rates = json.loads((tmp_path / "recipe.json").read_text())
    seconds = step["rows"][-1]["our_seconds"]
    straight, ours, loader, training = rates["rows"]
    assert ours["images_per_second"] == pytest.approx(1 / seconds)
    assert training["images_per_second"] == min(ours["images_per_second"], loader["images_per_second"])
    flops = float(rates["what"].partition(" GFLOPs")[0]) * 1e9
    assert ours["utilization_share"] == pytest.approx(flops / seconds / 1e11, rel=0.01)  # printed with three digits
    assert straight["ratio"] == 1


def test_a_gpu_on_paper(commands, tmp_path):
    words = [word for word in TOY if not word.startswith("batch_size")]
    outcome = commands.run("bench", "roofline", "gpu=h100", "datamodule.batch_size=16", f"out={tmp_path}", *words)
    assert outcome.code == 0, outcome.err
    assert "h100 with 989 TFLOP/s and 3350 GB/s" in outcome.out
    (report,) = json.loads((tmp_path / "roofline.json").read_text())
    assert "swin_micro_32px, 64 prototypes, batch 16, views of 2 x 32 + 2 x 16 px" in report["what"]
    together = report["rows"][-1]
    assert together["images_per_second"] == pytest.approx(16 / together["at_least_seconds"])
    given = ["gpu=h100", "peak_tflops=1", "peak_gbytes=2", f"out={tmp_path}"]
    assert "with 1 TFLOP/s and 2 GB/s" in commands.run("bench", "roofline", *given, *TOY).out


def test_a_cpu_is_not_rated_by_a_gpu_of_the_settings(commands, tmp_path):
    outcome = commands.run("bench", "recipe", "gpu=H100", "datamodule.num_workers=0", f"out={tmp_path}", *TOY)
    assert "utilisation of unknown TFLOP/s" in outcome.out


def test_memory_says_what_fits(commands, tmp_path, monkeypatch):
    monkeypatch.setattr("esvit_pl.benchmarks.memory.available_bytes", lambda device: 3 * 2**20)
    words = [word for word in TOY if not word.startswith("batch_size")]
    outcome = commands.run("bench", "memory", "datamodule.batch_size=64", "measured=true", f"out={tmp_path}", *words)
    assert outcome.code == 0, outcome.err
    (report,) = json.loads((tmp_path / "memory.json").read_text())
    assert [row["batch"] for row in report["rows"]] == [16, 32, 64]
    assert max(row["error"] for row in report["rows"]) < 0.1
    line = next(line for line in outcome.out.splitlines() if line.startswith("batch 64 needs"))
    micro, accumulate = map(
        int, re.findall(r"datamodule.batch_size=(\d+) trainer.accumulate_grad_batches=(\d+)", line)[0]
    )
    assert micro * accumulate == 64
    assert micro < 64


def test_switches_are_measured_on_the_backbone_of_the_config(commands, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("esvit_pl.benchmarks.switches.rows", lambda **how: seen.update(how) or iter(()))
    monkeypatch.setattr("esvit_pl.profiling.report.as_markdown", str)
    outcome = commands.run("bench", "switches", f"out={tmp_path}", *TOY)
    assert outcome.code == 0, outcome.err
    assert (seen["backbone"], seen["embed_dim"], list(seen["sides"])) == ("swin", 8, [32, 32, 16, 16])
    assert (seen["batch_size"], seen["repeats"], seen["autocast"]) == (1, 1, None)


def test_crops_are_measured_in_whole_batches(commands, tmp_path):
    outcome = commands.run("bench", "crops", f"out={tmp_path}", *TOY)
    assert outcome.code == 0, outcome.err
    (report,) = json.loads((tmp_path / "crops.json").read_text())
    assert {row["image"] for row in report["rows"]} == {"500 x 375", "2000 x 1500"}
    assert "views of 2 x 32 + 2 x 16 px of JPEGs made here, batch 1" in report["what"]


def test_measuring_leaves_no_run_behind(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands.run("bench", "loss", "out=kept", *TOY, folder=tmp_path)
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["kept/loss.json"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], f"esvit-bench needs a benchmark or several: {', '.join(BENCHMARKS)}"),
        (["los"], "there is no benchmark los; there are loss,"),
        (["tokens", "backbone=cvt_tiny_w7"], "tokens measures the padding of Swin, got backbone.name=cvt"),
        (["step", "trainer.precision=16-mixed"], "measures trainer.precision=32-true and bf16-mixed, got 16-mixed"),
        (["roofline", "trainer=cpu"], "a GPU's data sheet, and there is none of a CPU; choose gpu= one of B200, H200,"),
        (["roofline", "gpu=GTX"], "there is none of GTX; choose gpu="),
        (["loss", "loss.num_prototypse=4"], "num_prototypse: did you mean loss.num_prototypes?"),
    ],
)
def test_what_is_refused(commands, words, said):
    outcome = commands.run("bench", *words)
    assert outcome.code == 1
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_a_gpu_that_is_not_there(commands, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = commands.run("bench", "loss", "trainer=gpu")
    assert outcome.code == 1
    assert "trainer.accelerator=gpu, and torch" in outcome.err


def test_help_names_every_benchmark(commands):
    outcome = commands.run("bench", "--help")
    assert set(BENCHMARKS) <= {line.partition(" ")[0] for line in outcome.out.splitlines()}


def test_views_in_words():
    assert in_words((224, 224, 96, 96, 96)) == "2 x 224 + 3 x 96"
