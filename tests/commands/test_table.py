from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.fixture
def logs(tmp_path):
    """Two runs, one of them in a sweep."""
    for name, lr, top1 in [("runs/first", "0.01", 0.5), ("multiruns/sweep/0", "0.1", 0.25)]:
        folder = tmp_path / "logs" / name
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(f"- seed=1\n- optimizer.lr={lr}\n")
        results = {"status": "finished", "metrics": {"knn/top1": top1, "train/lr": float(lr)}}
        (folder / "results.json").write_text(json.dumps(results))
    return tmp_path / "logs"


def lines(outcome):
    assert outcome.code == 0, outcome.err
    return [line.split() for line in outcome.out.splitlines()]


def test_the_command_of_the_documentation(commands, logs):
    outcome = commands.run("table", f"{logs}/", "sort=knn/top1")
    assert lines(outcome) == [
        ["run", "optimizer.lr", "status", "epochs", "steps", "knn/top1"],
        ["runs/first", "0.01", "finished", "-", "-", "50.0%"],
        ["multiruns/sweep/0", "0.1", "finished", "-", "-", "25.0%"],
    ]


def test_columns_order_and_file(commands, logs, tmp_path):
    out = tmp_path / "new" / "table.csv"
    words = [f"{logs}/runs", f"{logs}/multiruns", "sort=train/lr", "reverse=true", "columns=knn/*", f"out={out}"]
    outcome = commands.run("table", *words)
    assert [row[-2:] for row in lines(outcome)[:3]] == [["train/lr", "knn/top1"], ["0.01", "50.0%"], ["0.1", "25.0%"]]
    assert outcome.out.splitlines()[-1] == str(out)
    assert [row.split(",")[-2:] for row in out.read_text().splitlines()[1:]] == [["0.01", "0.5"], ["0.1", "0.25"]]


def test_a_picture_of_the_metric_that_sorts(commands, logs, tmp_path):
    outcome = commands.run("table", str(logs), f"picture={tmp_path}/new/knn.png")
    assert outcome.out.splitlines()[-1] == f"{tmp_path}/new/knn.png"
    assert (tmp_path / "new" / "knn.png").read_bytes().startswith(b"\x89PNG")
    refused = commands.run("table", str(logs), "sort=optimizer.lr", f"picture={tmp_path}/lr.png")
    assert refused.code == 1
    assert "lr.png shows the metric of sort=, and no run has optimizer.lr" in refused.err


def add(logs, name, *, status, config="resume:\n  mode: by_name\n", words=("seed=1",), **metrics):
    folder = logs / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    (folder / "results.json").write_text(json.dumps({"status": status, "metrics": metrics}))
    (folder / ".hydra" / "config.yaml").write_text(config)


def test_finished_runs_are_shown_and_the_others_on_request(commands, logs):
    add(logs, "runs/broken", status="failed")
    add(logs, "runs/slow", status="stopped")
    outcome = commands.run("table", str(logs))
    assert "broken" not in outcome.out
    assert outcome.out.splitlines()[-1] == "not shown: 1 failed, 1 stopped (status=all shows them)"
    assert "not shown" not in commands.run("table", str(logs), "status=all").out
    assert [line.split()[0] for line in commands.run("table", str(logs), "status=failed").out.splitlines()[:2]] == [
        "run",
        "runs/broken",
    ]
    assert lines(commands.run("table", f"{logs}/runs/slow"))[1][:2] == [".", "stopped"]  # there is nothing else
    refused = commands.run("table", str(logs), "status=broken")
    assert refused.code == 1
    assert "esvit-table knows no status=broken; choose one of finished, running, stopped, failed" in refused.err


def test_trainings_and_evaluations_stand_apart(commands, tmp_path):
    add(tmp_path, "a", status="finished", words=("loss=view",), **{"knn/top1": 0.5})
    add(tmp_path, "b", status="finished", words=("loss=moby",), **{"knn/top1": 0.25})
    add(tmp_path, "c", status="finished", config="resume_from: null\n", words=("ckpt_path=a",), **{"linear/top1": 0.75})
    assert lines(commands.run("table", str(tmp_path))) == [
        ["trainings"],
        [],
        ["run", "loss", "status", "epochs", "steps", "knn/top1"],
        ["a", "view", "finished", "-", "-", "50.0%"],
        ["b", "moby", "finished", "-", "-", "25.0%"],
        [],
        ["evaluations"],
        [],
        ["run", "status", "epochs", "steps", "linear/top1"],
        ["c", "finished", "-", "-", "75.0%"],
    ]


def test_eight_settings_are_enough_for_a_terminal(commands, tmp_path):
    for run in "ab":
        words = [f"s{number}={run}" for number in range(10)]
        add(tmp_path, run, status="finished", words=words, **{"knn/top1": 0.5})
    out = tmp_path / "table.csv"
    outcome = commands.run("table", str(tmp_path), f"out={out}")
    assert lines(outcome)[0][1:-4] == [f"s{number}" for number in range(8)]
    assert "2 more settings differ: s8, s9 (settings=null shows them)" in outcome.out
    assert out.read_text().splitlines()[0].startswith("run,s0,s1,s2,s3,s4,s5,s6,s7,s8,s9,status")
    assert "s9" in lines(commands.run("table", str(tmp_path), "settings=null"))[0]


def test_without_a_folder_it_shows_where_runs_go(commands, logs, monkeypatch):
    monkeypatch.setenv("ESVIT_LOG_DIR", str(logs))
    assert lines(commands.run("table"))[1][0] == "runs/first"


def test_looking_leaves_nothing_behind(commands, logs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for words in (["logs"], ["logs", "sort=zzz"], ["."]):
        commands.run("table", *words, folder=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{logs}", "sort=knn/top2"], "sort=knn/top2: no run has it; did you mean knn/top1?"),
        (["{logs}x"], "esvit-table needs folders that hold runs; there is no {logs}x\n\nFor example:"),
        (["{logs}/runs/first/.hydra"], "no run in {logs}/runs/first/.hydra: a run's folder holds"),
        (["{logs}", "sotr=lr"], "sotr=lr: did you mean sort=lr?"),
    ],
)
def test_what_is_refused(commands, logs, words, said):
    outcome = commands.run("table", *(word.format(logs=logs) for word in words))
    assert outcome.code == 1
    assert said.format(logs=logs) in outcome.err
    assert "Traceback" not in outcome.err


def test_it_loads_neither_torch_nor_numpy(logs):
    code = (
        "import sys; sys.argv = ['esvit-table', sys.argv[1], 'sort=knn/top1']\n"
        "from esvit_pl.commands.table import main; main()\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'pytorch_lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(logs)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "runs/first" in done.stdout


def test_published_results_are_shown_without_a_run_of_ours(commands, tmp_path):
    out = tmp_path / "published.csv"
    outcome = commands.run("table", "published=true", f"out={out}")
    line = next(line for line in lines(outcome) if line[:1] == ["swin_tiny_w14_view_region"])
    assert line == ["swin_tiny_w14_view_region", "78.7", "-", "77.0", "-", "Table", "1", "-"]
    assert "published: Li et al., arXiv 2106.09785" in outcome.out
    assert "swin_tiny_w14_view_region,78.7,,77.0,,Table 1," in out.read_text()
    assert "there is no nowhere" in commands.run("table", "nowhere", "published=true").err
