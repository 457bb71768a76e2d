"""The lock of a run folder: one process writes there at a time. It imports no torch."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

NAME = "run.lock"


class FolderInUse(ValueError):
    """Another process writes into the folder, or may do so."""


class FolderLock:
    """``run.lock`` in a folder: a small JSON file that says which process writes there.

    The file is made with O_EXCL, so of two processes that start at once exactly one gets it, on network file systems
    too. A process that was killed leaves it behind; on the same machine that is noticed (by the process's number and
    its start time, since numbers are used again), and the lock is taken over.

    >>> lock = FolderLock("logs/a_run")
    >>> lock.take()  # None: nobody had it
    >>> lock.release()

    Args:
        folder: it is created if it does not exist.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / NAME
        self._pid: int | None = None

    def take(self) -> str | None:
        """Take the lock.

        Returns:
            A line for the user if the lock was taken over from a process that has died.

        Raises:
            FolderInUse: a living process has it, or one on another machine, of which this one cannot know.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        me = identity()
        line = None
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            line = self._take_over(me)
        else:
            try:
                _write(descriptor, me)
            except BaseException:  # the disk is full, or a signal came: an empty lock would keep everybody out
                self.path.unlink()
                raise
            finally:
                os.close(descriptor)
        self._pid = os.getpid()
        return line

    def release(self) -> None:
        """Remove the lock if this process took it; a forked child does not."""
        if self._pid == os.getpid():
            self._pid = None
            with suppress(OSError):
                self.path.unlink()

    def _take_over(self, me: Mapping[str, Any]) -> str:
        """Put this process into the file of a dead one. Meanwhile the system locks the file, so that of two processes
        only one takes it over."""
        with suppress(OSError):  # released in this moment; or a file system without such locks
            descriptor = os.open(self.path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                owner = _parsed(os.read(descriptor, 2**16))
                unchanged = os.fstat(descriptor).st_ino == self.path.stat().st_ino
                if unchanged and owner is not None and is_dead(owner):
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    _write(descriptor, me)
                    return f"{_described(owner)} was killed in {self.path.parent}; its lock is taken over"
            finally:
                os.close(descriptor)
        raise FolderInUse(self._refusal())

    def _refusal(self) -> str:
        folder = self.path.parent
        owner = read_lock(folder)
        if owner is None:  # perhaps it is being written
            time.sleep(0.2)
            owner = read_lock(folder)
        if owner is None:
            return f"another run holds {self.path}, and the file does not say which; if none is running, remove it"
        who = _described(owner)
        if is_dead(owner):
            return f"{who} was killed in {folder} and left its lock; remove {self.path}"
        if not _on_this_machine(owner):
            return (
                f"{who} on {owner.get('host')} writes into {folder}, or was killed there: this machine cannot see it. "
                f"If it does not run any more, remove {self.path}"
            )
        return f"{who} is writing into {folder}; wait for it, stop it (kill {owner['pid']}), or give another folder"


def read_lock(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The `identity` in a folder's lock; None if there is no lock, or if it cannot be read."""
    try:
        return _parsed((Path(folder) / NAME).read_bytes())
    except OSError:
        return None


def identity() -> dict[str, Any]:
    """What tells this process from all others: machine, number, start time; and its command, for people.

    Of a SLURM job also its number and how often it was started, since SLURM ends a job before it starts it again.
    """
    job = os.environ.get("SLURM_JOB_ID")
    return {
        **({} if job is None else {"job": job, "starts": slurm_starts()}),
        "host": socket.gethostname(),
        "namespace": _namespace(),
        "boot": _boot(),
        "pid": os.getpid(),
        "process_started": _process_started(os.getpid()),
        "since": datetime.now().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def is_dead(owner: Mapping[str, Any]) -> bool:
    """Whether the process of this `identity` is known to be gone. Its number may be another's by now."""
    job = owner.get("job")
    if job is not None and job == os.environ.get("SLURM_JOB_ID") and owner.get("starts") != slurm_starts():
        return True
    if not _on_this_machine(owner):
        return False
    if owner.get("boot") != _boot():  # the machine was started again
        return True
    started = _process_started(int(owner["pid"]))
    return started is None or started != owner.get("process_started")


def slurm_starts() -> int:
    """How often SLURM has put this job back into its queue."""
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdecimal() else 0


def _on_this_machine(owner: Mapping[str, Any]) -> bool:
    """Containers of one machine number their processes apart, so they count as machines."""
    return owner.get("host") == socket.gethostname() and owner.get("namespace") == _namespace()


def _described(owner: Mapping[str, Any]) -> str:
    words = str(owner.get("command"))
    command = words if len(words) <= 80 else f"{words[:79]}…"
    return f"process {owner.get('pid')} ({command}, since {owner.get('since')})"


def _process_started(pid: int) -> str | None:
    """When a process started; None if there is none, or if it has ended and only waits to be noticed by its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _namespace() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _write(descriptor: int, owner: Mapping[str, Any]) -> None:
    """Write over what is there."""
    text = json.dumps(owner, indent=2).encode() + b"\n"
    os.write(descriptor, text)
    os.ftruncate(descriptor, len(text))
    os.fsync(descriptor)


def _parsed(text: bytes) -> dict[str, Any] | None:
    """None for half of a text, and for anything that is no identity."""
    try:
        owner = json.loads(text)
    except ValueError:
        return None
    return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) else None
