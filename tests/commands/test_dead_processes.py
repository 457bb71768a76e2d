"""A process of a training is killed: the training ends, soon, and says which."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.soak import WORDS, children, steps_of
from esvit_pl.profiling.photographs import photographs_in_a_folder


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
