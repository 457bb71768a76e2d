"""``make attempts`` tries to get code run by what strangers send, and prints what came of it (docs/reliability.md).

Each attempt is a real command in a folder of its own. A module ``stranger`` lies on Python's path; whoever imports it
makes a file. The last attempt is the control: it trusts the module, and the file is there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent
PAGE, MARK = DOCS / "reliability.md", "<!-- attempts -->"
STRANGER = """
import os, pathlib
pathlib.Path(os.environ["MARKER"]).touch()
class Code:
    def __init__(self, *args, **kwargs): ...
"""
RUN = ["experiment=embedded", "dry_run=true", "trainer=cpu"]


class Attempt(NamedTuple):
    """What is tried: the words of a command, and files in its folder."""

    where: str
    what: str
    words: Sequence[str]
    files: Mapping[str, str] = {}
    environment: Mapping[str, str] = {}
    command: str = "pretrain"


class Outcome(NamedTuple):
    """Whether the stranger's code ran, how the command ended, and its last line."""

    ran: bool
    code: int
    said: str


def experiment(body: str) -> dict[str, str]:
    return {"theirs/experiment/strange.yaml": f"# @package _global_\n{body}\n"}


def past_run(hydra: str, config: str = "") -> dict[str, str]:
    """The folder of a run that somebody has sent."""
    run = "defaults: [pretrain, _self_]\n" + config
    return {"run/.hydra/config.yaml": run + hydra, "run/.hydra/overrides.yaml": "[]\n"}


THEIRS = ["--config-dir", "theirs", "experiment=strange", "dry_run=true"]
TRAINING = [*THEIRS[:3], "dataset=photographs"]
AGAIN = ["--config-dir", "run/.hydra", "--config-name", "config", "dry_run=true"]
PART = "{_target_: stranger.Code}"
ATTEMPTS = (
    Attempt("an experiment file", "`hydra.callbacks`", THEIRS, experiment(f"hydra: {{callbacks: {{x: {PART}}}}}")),
    Attempt(
        "an experiment file",
        "`hydra.job_logging`, a factory",
        THEIRS,
        experiment("hydra: {job_logging: {handlers: {console: {(): stranger.Code}}}}"),
    ),
    Attempt(
        "an experiment file",
        "`hydra.job_logging`, `ext://`",
        THEIRS,
        experiment("hydra: {job_logging: {handlers: {console: {stream: 'ext://stranger.Code'}}}}"),
    ),
    Attempt(
        "an experiment file",
        "`hydra.job.env_set` of the list of what is trusted",
        THEIRS,
        experiment(
            f"hydra: {{job: {{env_set: {{ESVIT_TRUSTED_TARGETS: stranger., ESVIT_PLUGINS: stranger}}}}}}\nloss: {PART}"
        ),
    ),
    Attempt(
        "an experiment file",
        "`hydra.job.env_set.PYTHONPATH`",
        THEIRS,
        experiment("hydra: {job: {env_set: {PYTHONPATH: /tmp}}}"),
    ),
    Attempt("an experiment file", "a part of the training", TRAINING, experiment(f"loss: {PART}")),
    Attempt("an experiment file", "a callback of the training", TRAINING, experiment(f"callbacks: {{x: {PART}}}")),
    Attempt(
        "an experiment file",
        "a sweeper's function",
        ["--config-dir", "theirs", "-m", "experiment=strange", "dry_run=true"],
        experiment(
            "defaults: [override /hydra/sweeper: optuna]\nhydra: {sweeper: {custom_search_space: stranger.Code}}"
        ),
    ),
    Attempt(
        "an experiment file",
        "a launcher's commands",
        ["--config-dir", "theirs", "-m", "experiment=strange", "dry_run=true"],
        experiment(
            "defaults: [override /hydra/launcher: submitit_slurm]\n"
            "hydra: {launcher: {setup: ['python -c \"import stranger\"']}}"
        ),
    ),
    Attempt("an experiment file", "the same, only looked at (`--cfg all`)", ["--cfg", "all", *THEIRS[:3]], experiment(
        f"hydra: {{callbacks: {{x: {PART}}}}}"
    )),
    Attempt("an experiment file", "the same, with `--info`", ["--info", "config", *THEIRS[:3]], experiment(
        f"hydra: {{callbacks: {{x: {PART}}}}}"
    )),
    Attempt(
        "an option in `--config-dir`",
        "a logger",
        ["--config-dir", "theirs", "experiment=embedded", "trainer=cpu", "logger=strange"],
        {"theirs/logger/strange.yaml": f"x: {PART}\n"},
    ),
    Attempt(
        "an option in `--config-dir`",
        "`hydra/job_logging`",
        ["--config-dir", "theirs", *RUN, "hydra/job_logging=strange"],
        {"theirs/hydra/job_logging/strange.yaml": "version: 1\nhandlers: {x: {class: stranger.Code}}\n"},
    ),
    Attempt(
        "a search path",
        "a folder with a callback of Hydra's",
        ["hydra.searchpath=[file://theirs]", "experiment=strange", "dry_run=true"],
        experiment(f"hydra: {{callbacks: {{x: {PART}}}}}"),
    ),
    Attempt("a search path", "a package", [*RUN, "hydra.searchpath=[pkg://stranger]"]),
    Attempt("a run folder", "a search path in its config", AGAIN, past_run("hydra: {searchpath: ['pkg://stranger']}\n")),
    Attempt("a run folder", "`hydra.callbacks` in its config", AGAIN, past_run(
        f"hydra: {{callbacks: {{x: {PART}}}}}\n"
    )),
    Attempt("a run folder", "a pickle for `--experimental-rerun`", ["--experimental-rerun", "run/config.pickle"], {
        "run/config.pickle": "cstranger\nCode\n(tR."
    }),
    Attempt("the command line", "`hydra.callbacks`", [*RUN, "+hydra.callbacks.x._target_=stranger.Code"]),
    Attempt("the command line", "jobs in other processes (joblib)", [
        "-m", *RUN, "hydra/launcher=joblib", "seed=1,2", "+callbacks.x._target_=stranger.Code", "dry_run=false",
    ]),
    Attempt("a checkpoint", "a pickle", ["ckpt_path=a.ckpt", "dataset=photographs"], {
        "a.ckpt": "\x80\x02cstranger\nCode\n)R."
    }, command="knn"),
    Attempt("the control", "`hydra.callbacks`, and the environment trusts it", [
        *RUN, "+hydra.callbacks.x._target_=stranger.Code",
    ], environment={"ESVIT_TRUSTED_TARGETS": "stranger."}),
)  # fmt: skip


def tried(attempt: Attempt, folder: Path) -> Outcome:
    """What becomes of an attempt in an empty folder."""
    marker = folder / "marker"
    for name, text in {"path/stranger.py": STRANGER, **attempt.files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="latin-1")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ESVIT_", "HYDRA_"))}
    path = os.pathsep.join(filter(None, [str(folder / "path"), clean.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", f"esvit_pl.commands.{attempt.command}", *attempt.words],
        cwd=folder,
        env={**clean, "PYTHONPATH": path, "MARKER": str(marker), **attempt.environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    said = next((line for line in lines if "stranger" in line or "refused" in line), lines[-1] if lines else "")
    return Outcome(marker.exists(), done.returncode, said.replace(str(folder), "..."))


def row(attempt: Attempt, outcome: Outcome) -> str:
    result = "**its code ran**" if outcome.ran else f"refused, exit code {outcome.code}"
    return f"| {attempt.where} | {attempt.what} | {result} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(os.cpu_count()) as pool:
        folders = [Path(root) / str(number) for number in range(len(ATTEMPTS))]
        outcomes = list(pool.map(tried, ATTEMPTS, folders))
    lines = ["| What came | What it tried | What happened |", "|---|---|---|", *map(row, ATTEMPTS, outcomes)]
    print("\n".join(lines))
    if PAGE.is_file() and MARK in (page := PAGE.read_text(encoding="utf-8")):
        before, _, after = page.partition(MARK)
        rest = after.partition("\n\n")[2]
        PAGE.write_text("\n".join([f"{before}{MARK}", *lines, "", rest]), encoding="utf-8")
    sys.exit([outcome.ran for outcome in outcomes] != [False] * (len(outcomes) - 1) + [True])


if __name__ == "__main__":
    main()
