"""Of all processes that want a folder, one gets it; of those that died, the next one takes it over."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esvit_pl.runs.lock import NAME, FolderInUse, FolderLock, identity, is_dead, read_lock

TAKE = """
import sys, time
from esvit_pl.runs.lock import FolderInUse, FolderLock
while time.time() < float(sys.argv[2]):
    pass
try:
    FolderLock(sys.argv[1]).take()
    print("taken", flush=True)
    time.sleep(60)
except FolderInUse as error:
    print(error, flush=True)
"""


def start(folder: Path, at: float = 0.0) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", TAKE, str(folder), str(at)], stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    with process.stdout as stdout:
        return stdout.readline()


def test_the_file_says_who_writes_there_and_goes_at_the_end(tmp_path):
    lock = FolderLock(tmp_path / "run")
    assert lock.take() is None
    owner = read_lock(tmp_path / "run")
    assert owner is not None
    assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
    assert not is_dead(owner)
    lock.release()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.fault(
    "output folder: two runs at once in one folder",
    "the second is refused and names the process of the first; the lock of a process that was killed is taken over",
)
def test_a_living_process_keeps_its_folder_and_a_killed_one_loses_it(tmp_path):
    other = start(tmp_path)
    assert first_line(other) == "taken\n"
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(FolderInUse, match=rf"process {other.pid} .* is writing into .*; wait for it, stop it \(kill"):
        FolderLock(tmp_path).take()
    assert (tmp_path / NAME).read_bytes() == before
    other.kill()
    time.sleep(0.2)  # it is not waited for: a zombie is dead, too
    assert f"process {other.pid} " in str(FolderLock(tmp_path).take())
    other.wait()
    owner = read_lock(tmp_path)
    assert owner is not None
    assert owner["pid"] == os.getpid()


@pytest.mark.parametrize("stale", [False, True], ids=["new", "stale"])
def test_of_processes_that_start_at_once_exactly_one_gets_it(tmp_path, stale):
    if stale:
        (tmp_path / NAME).write_text(json.dumps({**identity(), "process_started": "0"}))
    at = time.time() + 1.5
    several = [start(tmp_path, at) for _ in range(6)]
    said = [first_line(other) for other in several]
    for other in several:
        other.kill()
        other.wait()
    assert said.count("taken\n") == 1, said
    assert all(re.search("^taken$| is writing into |another run holds", line) for line in said), said


def test_a_number_that_another_process_has_by_now_is_not_the_owner(tmp_path):
    (tmp_path / NAME).write_text(json.dumps({**identity(), "process_started": "12345"}))
    assert "was killed" in str(FolderLock(tmp_path).take())


def test_a_restart_of_the_machine_ends_every_run(tmp_path):
    (tmp_path / NAME).write_text(json.dumps({**identity(), "boot": "an earlier one"}))
    assert "was killed" in str(FolderLock(tmp_path).take())


@pytest.mark.parametrize("changed", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}], ids=["machine", "container"])
def test_of_another_machine_this_one_cannot_know(tmp_path, changed):
    (tmp_path / NAME).write_text(json.dumps({**identity(), "pid": 1, "process_started": "0", **changed}))
    with pytest.raises(FolderInUse, match=rf"this machine cannot see it. If it .* remove {tmp_path}/{NAME}"):
        FolderLock(tmp_path).take()


def test_a_slurm_job_that_starts_again_ends_its_earlier_start_on_whatever_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    (tmp_path / NAME).write_text(json.dumps({**identity(), "host": "elsewhere"}))
    with pytest.raises(FolderInUse, match="this machine cannot see it"):
        FolderLock(tmp_path).take()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "its lock is taken over" in str(FolderLock(tmp_path).take())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt("a signal")])
def test_a_full_disk_and_a_signal_leave_no_lock_behind(tmp_path, monkeypatch, error):
    def interrupted(*args):
        raise error

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(type(error), match=r"No space left|a signal"):
        FolderLock(tmp_path).take()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "one"}'])
def test_a_lock_that_says_nothing_is_respected(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(FolderInUse, match=f"another run holds {tmp_path}/{NAME}.*remove it"):
        FolderLock(tmp_path).take()
    assert (tmp_path / NAME).read_text() == text


def test_a_forked_child_leaves_the_lock_alone(tmp_path):
    lock = FolderLock(tmp_path)
    lock.take()
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / NAME).is_file()
