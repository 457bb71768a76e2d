"""Whether a long training stays as it is: ``python -m benchmarks.soak minutes=15 out=logs/soak``, or ``make soak``.

A tiny network is trained by the real command on JPEGs made here, with two loading processes and a checkpoint in
every short epoch, while another process looks at it from outside every two seconds. Leading fifth of the time: warm-up.

Flat means: over the rest, a straight line through the samples rises by less than 3 % of their median. Memory may rise
by 8 MiB, handles and threads by 2. Speed is counted in steps a second of the processors' time, because other programs
take their share of a machine, and may change by 15 %.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esvit_pl.profiling.photographs import photographs_in_a_folder
from esvit_pl.profiling.report import as_markdown

EVERY = 2.0
WARM_UP = 0.2
SHARE = 0.03
MIB = 2**20
ALLOWED = {"main memory": 8 * MIB, "workers' memory": 8 * MIB, "shared memory": 8 * MIB, "handles": 2, "threads": 2}
SPEED = "steps a CPU second"
SPEED_SHARE = 0.15
WORDS = [
    *("dataset=folder", "dataset.layout=flat", "trainer=cpu", "datamodule.num_workers=2", "datamodule.batch_size=16"),
    *("backbone=swin_micro_32px", "backbone.embed_dim=8", "backbone.num_heads=[1,2]", "augment.num_local=2"),
    *("augment.global_size=32", "augment.local_size=16", "loss.num_prototypes=64", "loss.hidden_dim=16"),
    *("loss.out_dim=8", "trainer.max_epochs=1000000", "optimizer.lr=0.0001"),
]


class Trend(NamedTuple):
    """Of one of the things that are watched, without the warm-up."""

    what: str
    median: str
    rise: str
    """Of the straight line, from its beginning to its end."""
    allowed: str
    flat: bool


def main(words: Sequence[str]) -> int:
    """Train, watch, print the table and draw the picture; 1 if something is not flat."""
    given = dict(word.split("=", 1) for word in words)
    out = Path(given.get("out", "logs/soak"))
    samples = watched(float(given.get("minutes", 60)))
    rows = trends(samples)
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(json.dumps(samples) + "\n", encoding="utf-8")
    print(as_markdown(rows))
    print(draw(samples, out / "soak.png"), flush=True)
    return 0 if all(row.flat for row in rows) else 1


def watched(minutes: float) -> dict[str, list[float]]:
    """Samples of a training of so many minutes, by what was looked at."""
    with photographs_in_a_folder(128, (96, 128)) as folder, tempfile.TemporaryDirectory() as runs:
        run = Path(runs, "run")
        command = [sys.executable, "-m", "esvit_pl.commands.pretrain", f"dataset.root={folder}", f"out={run}", *WORDS]
        training = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        samples: dict[str, list[float]] = {name: [] for name in ("seconds", *ALLOWED, "steps", "cpu seconds")}
        start = time.monotonic()
        try:
            while time.monotonic() - start < 60 * minutes:
                time.sleep(EVERY)
                if training.poll() is not None:
                    raise RuntimeError(f"the training ended with exit code {training.returncode}")
                steps = steps_of(run / "metrics.csv")
                workers = children(training.pid)
                if steps and workers:
                    everyone = [training.pid, *workers]
                    samples["seconds"].append(time.monotonic() - start)
                    samples["main memory"].append(memory(training.pid))
                    samples["workers' memory"].append(sum(map(memory, workers)))
                    samples["shared memory"].append(shared_memory())
                    samples["handles"].append(sum(count(pid, "fd") for pid in everyone))
                    samples["threads"].append(sum(count(pid, "task") for pid in everyone))
                    samples["steps"].append(steps)
                    samples["cpu seconds"].append(sum(map(cpu_seconds, everyone)))
        finally:
            training.send_signal(signal.SIGTERM)
            try:
                training.wait(timeout=60)
            except subprocess.TimeoutExpired:
                training.kill()
                training.wait()
    return samples


def trends(samples: Mapping[str, Sequence[float]]) -> list[Trend]:
    """How each of the things has moved."""
    seconds = np.array(samples["seconds"])
    kept = seconds >= seconds[0] + WARM_UP * (seconds[-1] - seconds[0])
    rows = []
    for name, allowed in ALLOWED.items():
        values = np.array(samples[name])[kept]
        middle, rise = float(np.median(values)), _rise(seconds[kept], values)
        most = max(allowed, SHARE * middle)
        rows.append(Trend(name, *(_shown(name, value) for value in (middle, rise, most)), flat=rise < most))
    speeds, times = speed(samples)
    later = times >= seconds[kept][0]
    middle, rise = float(np.median(speeds[later])), _rise(times[later], speeds[later])
    most = SPEED_SHARE * middle
    rows.append(Trend(SPEED, f"{middle:.1f}", f"{rise:+.1f}", f"±{most:.1f}", flat=abs(rise) < most))
    return rows


def speed(samples: Mapping[str, Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps a CPU second over each 20th of the time, and when."""
    seconds, steps, cpu = (np.array(samples[name]) for name in ("seconds", "steps", "cpu seconds"))
    edges = np.unique(np.linspace(0, len(seconds) - 1, 21).astype(int))
    return np.diff(steps[edges]) / np.diff(cpu[edges]), (seconds[edges[1:]] + seconds[edges[:-1]]) / 2


def draw(samples: Mapping[str, Sequence[float]], path: Path) -> Path:
    """A panel for each of the things."""
    from esvit_pl.visualize.figures.style import BLUE, new_figure, save, tidy

    figure = new_figure(9, 6)
    minutes = np.array(samples["seconds"]) / 60
    panels = figure.subplots(3, 2, sharex=True).flatten()
    for axes, name in zip(panels, [*ALLOWED, SPEED], strict=True):
        if name == SPEED:
            speeds, times = speed(samples)
            axes.plot(times / 60, speeds, color=BLUE)
        else:
            values = np.array(samples[name]) / (MIB if name.endswith("memory") else 1)
            axes.plot(minutes, values, color=BLUE)
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        tidy(axes, f"{name}, MiB" if name.endswith("memory") else name)
    for axes in panels[-2:]:
        axes.set_xlabel("minutes")
    return save(figure, path)


# -- what the system tells of processes


def memory(pid: int) -> float:
    """Bytes of a process without its files' (libraries); what several share is divided. 0 if it has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def children(pid: int) -> list[int]:
    """The loading processes: children that torch has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


def cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def count(pid: int, what: str) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/{what}"))
    except OSError:
        return 0


def shared_memory() -> float:
    """Bytes in /dev/shm, those of other programs too."""
    about = os.statvfs("/dev/shm")
    return float((about.f_blocks - about.f_bfree) * about.f_frsize)


def steps_of(metrics: Path) -> int:
    """The last step that was logged."""
    try:
        header, *_, last = metrics.read_text(encoding="utf-8").splitlines()
        return int(last.split(",")[header.split(",").index("step")])
    except (OSError, ValueError):
        return 0


def _rise(seconds: np.ndarray, values: np.ndarray) -> float:
    slope = np.polynomial.Polynomial.fit(seconds, values, 1).convert().coef
    return float(slope[1] * (seconds[-1] - seconds[0])) if len(slope) > 1 else 0.0


def _shown(name: str, value: float) -> str:
    return f"{value / MIB:.1f} MiB" if name.endswith("memory") else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
