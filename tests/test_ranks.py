"""A process of a training is killed or gets a signal: all of them end, soon, and say why. With real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from benchmarks.soak import WORDS, children, steps_of
from esvit_pl.profiling.photographs import photographs_in_a_folder
from esvit_pl.ranks import death_of
from esvit_pl.runs.reading import read_run

TWO = ["trainer=ddp_cpu", "trainer.devices=2"]
A_MINUTE = 60


def test_a_rank_that_died_is_found_among_those_that_were_started():
    def ranks(*scripts: str) -> list[subprocess.Popen[bytes]]:
        started = [subprocess.Popen([sys.executable, "-c", script]) for script in scripts]
        for rank in started:
            rank.wait()
        return started

    killed, failed, ended = "import os; os.kill(os.getpid(), 9)", "raise SystemExit(3)", "raise SystemExit(143)"
    early = "import os; os.kill(os.getpid(), 15)"
    assert "rank 2 (process " in death_of(ranks("", killed)).sentence
    assert "was killed by SIGKILL, and the others cannot go on" in death_of(ranks(killed)).sentence
    assert "rank 2 (process " in death_of(ranks(failed, killed)).sentence, "the others fail because it was killed"
    assert "ended with exit code 3" in death_of(ranks(failed)).sentence
    assert [death_of(ranks(script)).code for script in (killed, failed, ended, early)] == [1, 1, 143, 143]
    assert death_of(ranks("")) is None
    assert death_of([]) is None


class Training:
    """A training that never ends, by the real command, in a session of its own."""

    def __init__(self, process: subprocess.Popen[bytes], run: Path, log: Path) -> None:
        self.process, self.run, self._log = process, run, log
        self._seen: set[int] = set()

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def steps(self) -> int:
        return steps_of(self.run / "metrics.csv")

    @property
    def rank_1(self) -> int | None:
        """Its process."""
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(self.process.pid)}
        return next((pid for pid, words in commands.items() if b"train_ddp_process_1" in words), None)

    def wait_for(self, what: str) -> None:
        """Wait until it trains, or until its second rank has been started."""
        while not (self.rank_1 if what == "ranks" else self.run.exists() if what == "set-up" else self.steps >= 4):
            assert self.process.poll() is None, self.log
            time.sleep(0.1)
        self._seen = {pid for parent in [self.process.pid, *children(self.process.pid)] for pid in children(parent)}

    def end(self) -> int:
        """Its exit code, when all of its processes have gone."""
        code = self.process.wait(timeout=A_MINUTE)
        end = time.monotonic() + A_MINUTE
        while left := [pid for pid in self._seen if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < end, f"still there: {left}\n{self.log}"
            time.sleep(0.1)
        assert "Traceback" not in self.log
        return code


def _hear_signals() -> None:
    """Under nohup, and in the background of a shell, a process ignores some signals, and so would this one."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def training(folder: Path, words: Sequence[str] = (), **environment: str) -> Iterator[Training]:
    run, log = folder / "run", folder / "log"
    keys = {word.partition("=")[0] for word in words}
    settings = ["trainer.log_every_n_steps=1", *words, *(word for word in WORDS if word.partition("=")[0] not in keys)]
    with photographs_in_a_folder(128, (96, 128)) as pictures, log.open("a") as file:
        command = [sys.executable, "-m", "esvit_pl.commands.pretrain", f"dataset.root={pictures}", f"out={run}"]
        process = subprocess.Popen(
            [*command, *settings],
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=_hear_signals,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        try:
            yield Training(process, run, log)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "victim", "code", "status", "said"),
    [
        ([], "worker", 1, "failed", r"LoadingStopped: loading process \d+ was killed by SIGKILL"),
        (TWO, "rank 1", 1, "failed", r"rank 1 \(process \d+\) was killed by SIGKILL, and the others cannot go on"),
        (
            TWO,
            "rank 0",
            -signal.SIGKILL,
            "killed",
            "the first process of the training has ended, and the others cannot",
        ),
    ],
    ids=["loading process", "rank 1", "rank 0"],
)
@pytest.mark.parametrize("when", ["steps", "ranks"])
def test_one_is_killed(tmp_path, words, victim, code, status, said, when):
    if victim == "worker" and when == "ranks":
        pytest.skip("there are no loading processes yet")
    with training(tmp_path, words) as its:
        its.wait_for(when)
        process = its.process.pid
        os.kill({"worker": min(children(process), default=0), "rank 0": process, "rank 1": its.rank_1}[victim], 9)
        assert its.end() == code
    assert read_run(its.run).status == status
    assert re.search(said, its.log) or (victim == "rank 0" and when == "ranks"), its.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "name", "to", "when"),
    [
        ([], "SIGINT", "all", "steps"),  # Ctrl-C in a terminal
        ([], "SIGTERM", "all", "steps"),  # timeout(1)
        ([], "SIGHUP", "all", "steps"),
        ([], "SIGUSR1", "rank 0", "steps"),
        ([], "SIGTERM", "rank 0", "set-up"),
        ([], "SIGUSR1", "rank 0", "set-up"),
        (TWO, "SIGINT", "all", "steps"),
        (TWO, "SIGTERM", "rank 0", "steps"),
        (TWO, "SIGTERM", "rank 1", "steps"),
        (TWO, "SIGTERM", "rank 0", "ranks"),
        (TWO, "SIGTERM", "rank 1", "ranks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "two ranks" if value else "one rank",
)
def test_a_signal(tmp_path, words, name, to, when):
    number = getattr(signal, name)
    with training(tmp_path, words) as its:
        its.wait_for(when)
        steps = its.steps
        if to == "all":
            os.killpg(its.process.pid, number)
        else:
            os.kill(its.process.pid if to == "rank 0" else its.rank_1, number)
        assert its.end() == 128 + number
    last = its.run / "checkpoints" / "last.ckpt"
    assert read_run(its.run).status == ("stopped" if (its.run / "results.json").exists() else "no results")
    assert not (its.run / "run.lock").exists()
    if when == "steps":
        saved = torch.load(last, weights_only=True)["global_step"]
        assert re.search(rf"{name}: epoch \d+, step {saved} is saved", its.log)
        assert steps < saved <= steps + 6, (
            "the step that was running, or the one after; some pass until the signal comes"
        )
        assert its.steps == saved - 1, "each step that is saved was logged; the first is 0"
    else:
        assert not last.exists()


@pytest.mark.slow
def test_a_slurm_job_saves_its_step_goes_back_into_the_queue_and_goes_on(tmp_path):
    """With a stand-in for `scontrol` that notes its words."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nls {tmp_path}/run >> {tmp_path}/seen\n')
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": "1"}
    task = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost"}
    environment = {**job, **task, "SLURM_JOB_NAME": "train", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    words = ["trainer=slurm", "trainer.accelerator=cpu", "resume=auto"]
    with training(tmp_path, words, **environment) as its:
        its.wait_for("steps")
        os.kill(its.process.pid, signal.SIGUSR1)
        assert its.end() == 128 + signal.SIGUSR1
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert "run.lock" not in (tmp_path / "seen").read_text(), "the next start may be on another machine"
    assert "SLURM job 77 goes back into the queue" in its.log
    done = its.steps + 1
    with training(tmp_path, words, **environment, SLURM_RESTART_COUNT="1") as its:
        while its.steps <= done:
            assert its.process.poll() is None, its.log
            time.sleep(0.1)
        os.kill(its.process.pid, signal.SIGTERM)  # by hand: that is no reason to go back
        assert its.end() == 128 + signal.SIGTERM
    assert f"step {done} of" in its.log
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
