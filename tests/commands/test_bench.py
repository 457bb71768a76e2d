from __future__ import annotations

import json
import re

import pytest
from toys import WORDS as TOY

from esvit_pl.commands.bench import BENCHMARKS, in_words


def test_a_recipe_says_what_bounds_it(commands, tmp_path):
    words = ["datamodule=device_color", "datamodule.num_workers=0", "peak_tflops=0.1", f"out={tmp_path}"]
    outcome = commands.run("bench", "recipe", *words, *TOY)
    assert outcome.code == 0, outcome.err
    (report,) = json.loads((tmp_path / "recipe.json").read_text())
    step, loader, training = report["rows"]
    assert training["images_per_second"] == min(step["images_per_second"], loader["images_per_second"])
    flops = float(re.search(r"([\d.]+) GFLOPs", report["what"])[1]) * 1e9
    utilization = step["images_per_second"] * flops / 1e11
    assert step["utilization_share"] == pytest.approx(utilization, rel=0.01)  # printed with three digits
    assert step["peak_bytes"] > 0
    what = "swin_micro_32px, loss view_region (num_prototypes=64, hidden_dim=16, out_dim=8, num_layers=3"
    assert report["what"].startswith(what)
    assert "loader: device_color, 0 processes, JPEGs of 500 x 375 px" in report["what"]


def test_a_recipe_has_the_switches_of_its_training(commands, tmp_path):
    words = ["module.grad_checkpointing=true", "datamodule.num_workers=0", f"out={tmp_path}"]
    outcome = commands.run("bench", "recipe", *words, *TOY)
    assert outcome.code == 0, outcome.err
    assert "32-true, module.grad_checkpointing=true; " in outcome.out


def test_a_cpu_is_not_rated_by_a_gpu_of_the_settings(commands, tmp_path):
    outcome = commands.run("bench", "recipe", "gpu=H100", "datamodule.num_workers=0", f"out={tmp_path}", *TOY)
    assert "utilisation of unknown TFLOP/s" in outcome.out


def test_methods_have_the_settings_of_their_own_trainings(commands, tmp_path):
    words = ["experiment=embedded", "losses=[view,simclr,simmim]", "batch_size=4", "repeats=1", f"out={tmp_path}"]
    outcome = commands.run("bench", "methods", *words)
    assert outcome.code == 0, outcome.err
    (report,) = json.loads((tmp_path / "methods.json").read_text())
    assert [(row["method"], row["views"]) for row in report["rows"]] == [("view", 6), ("simclr", 2), ("simmim", 2)]
    assert report["what"].endswith("views of 2 x 32 + 4 x 16 px for view; 2 x 32 px for simclr, simmim")


@pytest.mark.slow
def test_memory_says_what_fits(commands, tmp_path, monkeypatch):
    monkeypatch.setattr("esvit_pl.profiling.available_memory.available_bytes", lambda device: 3 * 2**20)
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


def test_measuring_leaves_no_run_behind(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = commands.run("bench", "throughput", "backbones=[swin_micro_32px]", "out=kept", *TOY, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["kept/throughput.json", "kept/throughput.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], f"esvit-bench needs a benchmark or several: {', '.join(BENCHMARKS)}"),
        (["memroy"], "there is no benchmark memroy; there are memory,"),
        (["memory", "batch_size=0"], "batch_size=0 must be 1 or more"),
        (["recipe", "repeats=-1"], "repeats=-1 must be 1 or more"),
        (["loss"], "esvit-bench loss is now `python -m benchmarks loss`, in a checkout of the library"),
        (["recipe", "trainer.precision=16-mixed"], "measure trainer.precision=32-true and bf16-mixed, got 16-mixed"),
        (["throughput", "backbones=[swin_tiny_w8]"], "swin_tiny_w7"),
        (["methods", "losses=[mobi]"], "moby"),
        (["memory", "loss.num_prototypse=4"], "loss.num_prototypse=4: did you mean loss.num_prototypes=4?"),
    ],
)
def test_what_is_refused(commands, words, said):
    outcome = commands.run("bench", *words)
    assert outcome.code == 1
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_a_gpu_that_is_not_there(commands, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = commands.run("bench", "memory", "trainer=gpu")
    assert outcome.code == 1
    assert "trainer.accelerator=gpu, and torch" in outcome.err


def test_help_names_every_benchmark_and_where_the_others_are(commands):
    outcome = commands.run("bench", "--help")
    assert set(BENCHMARKS) <= {line.partition(" ")[0] for line in outcome.out.splitlines()}
    assert "python -m benchmarks" in outcome.out


def test_views_in_words():
    assert in_words((224, 224, 96, 96, 96)) == "2 x 224 + 3 x 96"
