"""A process of a training is killed: the training ends, soon, and says which."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.soak import WORDS, children, steps_of
from esvit_pl.configs.trainers import dead_rank
from esvit_pl.profiling.photographs import photographs_in_a_folder


def test_a_rank_that_died_is_found_among_those_that_were_started():
    def trainer(*scripts: str) -> SimpleNamespace:
        ranks = [subprocess.Popen([sys.executable, "-c", script]) for script in scripts]
        for rank in ranks:
            rank.wait()
        return SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=ranks)))

    killed = "import os; os.kill(os.getpid(), 9)"
    assert "rank 2 (process " in dead_rank(trainer("", killed))
    assert "was killed by SIGKILL, and the others cannot go on" in dead_rank(trainer(killed))
    assert "ended with exit code 3" in dead_rank(trainer("raise SystemExit(3)"))
    assert dead_rank(trainer("")) is None
    assert dead_rank(SimpleNamespace(strategy=SimpleNamespace(launcher=None))) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "is_chosen", "codes", "said"),
    [
        ([], lambda pid: True, (1,), "LoadingStopped: loading process {pid} was killed by SIGKILL"),
        (
            ["trainer=ddp_cpu", "trainer.devices=2"],
            lambda pid: bool(children(pid)),
            (1, -signal.SIGKILL),  # who notices first: the collective, or Lightning, which kills all
            r"rank 1 \(process {pid}\) was killed by SIGKILL|\[rank: 1\] Child process with PID {pid} terminated",
        ),
    ],
    ids=["loading process", "rank"],
)
def test_the_others_end_and_say_which(tmp_path: Path, words, is_chosen, codes, said):
    run, log = tmp_path / "run", tmp_path / "log"
    settings = [word for word in WORDS if not words or word != "trainer=cpu"]
    with photographs_in_a_folder(128, (96, 128)) as folder, log.open("w") as file:
        command = [sys.executable, "-m", "esvit_pl.commands.pretrain", f"dataset.root={folder}", f"out={run}"]
        training = subprocess.Popen([*command, *settings, *words], stdout=file, stderr=file)
        try:
            while steps_of(run / "metrics.csv") < 4:
                assert training.poll() is None, log.read_text()
                time.sleep(0.2)
            (victim, *_) = filter(is_chosen, children(training.pid))
            os.kill(victim, signal.SIGKILL)
            assert training.wait(timeout=60) in codes
        finally:
            training.kill()
            training.wait()
    assert re.search(said.format(pid=victim), log.read_text()), log.read_text()
    assert "Traceback" not in log.read_text()
