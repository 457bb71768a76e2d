"""``make resume-matrix``: trainings that are killed twice and go on, compared with uninterrupted ones to the last bit.

Each row is a training by command, in processes of its own. It runs once without interruption. Then it runs again, is
killed with SIGKILL (all its processes) as soon as it has saved itself so many times, goes on with ``ckpt_path=RUN``, is
killed once more, and goes on to its end. Compared are ``last.ckpt`` (student, teacher, objective, optimizer, loops,
sampler, callbacks) and all rows of ``metrics.csv`` but those that measure time. The last row is the control: two
trainings with different seeds, which must differ.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import documents
import torch
from commandline import Commands, write_pictures

COMMAND = [sys.executable, "-m", "esvit_pl.commands.pretrain"]
OF_THE_RUN = ("esvit_pl.config.", "esvit_pl.parameters.")
"""Parts of a checkpoint that hold paths and the command line."""
LIMIT = 300  # seconds


class Row(NamedTuple):
    """A training, by what is special about it."""

    name: str
    words: Sequence[str] = ()
    kills: Sequence[int] = (2, 3)
    """After so many saves of each start."""
    theirs: bool = False
    """Whether it trains the objective with a queue of docs/extending.md."""
    loss: str | None = None
    """One of conf/loss: a training of experiment=embedded on few patches."""
    again: Sequence[str] = ()
    """Words that only the second training gets; then nothing is killed."""


ROWS = [
    Row("0 workers"),
    Row("4 workers", ["datamodule.num_workers=4"]),
    Row("4 accumulated batches", ["trainer.accumulate_grad_batches=4", "datamodule.batch_size=2"]),
    Row("2 ranks", ["trainer=ddp_cpu", "datamodule.batch_size=4"]),
    Row("colour on the device", ["datamodule=device_color"]),
    Row("the region loss joins after the kill", ["loss.region_start_epoch=2"]),
    Row("trainer.max_steps=10", ["trainer.max_epochs=null", "trainer.max_steps=10"]),
    Row(
        "2 ranks, 4 workers, 2 accumulated batches, colour on the device",
        [
            "trainer=ddp_cpu",
            "datamodule=device_color",
            "datamodule.num_workers=4",
            "datamodule.batch_size=2",
            "trainer.accumulate_grad_batches=2",
        ],
    ),
    Row("an objective with a queue", theirs=True, kills=(1, 1)),
    Row("control: another seed, no kill", again=["seed=1"]),
]
LOSSES = sorted(path.stem for path in (documents.ROOT / "conf" / "loss").glob("*.yaml"))
IN_USE = {
    "swav": ["loss.queue_length=64", "loss.queue_start_epoch=0"],
    "igpt": ["backbone=igpt_embedded", "backbone.width=16", "backbone.depth=4", "backbone.side=8"],
}
"""Words with which a method does in three epochs all that it can do."""
METHODS = [Row(f"loss={loss}", IN_USE.get(loss, []), loss=loss) for loss in LOSSES]


class Outcome(NamedTuple):
    """What came of a row."""

    kills: Sequence[int]
    """Optimizer steps that were saved when it was killed."""
    compared: int
    """Tensors, numbers and words of the checkpoint."""
    rows: int
    """Of metrics.csv."""
    differences: list[str]
    """Names of what is not equal."""


def main() -> None:
    wanted = sys.argv[1:]
    rows = [row for row in (*ROWS, *METHODS) if not wanted or any(word in row.name for word in wanted)]
    print("| training | killed after step | values compared | rows of metrics.csv | different |")
    print("|---|---|---|---|---|", flush=True)
    for row in rows:
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(row, Path(folder))
        steps = ", ".join(map(str, found.kills)) or "-"
        print(f"| {row.name} | {steps} | {found.compared:,} | {found.rows} | {len(found.differences)} |", flush=True)


def outcome(row: Row, folder: Path) -> Outcome:
    """Train twice in `folder`, and compare."""
    words, environment = _words(row, folder)
    whole, broken = folder / "whole", folder / "broken"
    _train(whole, words, environment)
    if row.again:
        _train(broken, [*_without(words, row.again), *row.again], environment)
        return Outcome([], *_compare(whole, broken))
    kills, goes_on = [], [f"out={broken}"]
    for saves in row.kills:
        kills.append(_kill_after(saves, broken, [*words, *goes_on], environment))
        goes_on = [f"ckpt_path={broken}"]
    _run([*words, *goes_on], environment)
    return Outcome(kills, *_compare(whole, broken))


def _words(row: Row, folder: Path) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    own = ["callbacks.checkpoint.every=1steps", "trainer.log_every_n_steps=1", "evaluation.probes=[]"]
    if row.theirs:
        for block in documents.blocks(documents.ROOT / "docs" / "extending.md"):
            if block.title is not None:
                path = folder / "package" / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.body, encoding="utf-8")
        environment |= {"ESVIT_PLUGINS": "theirs", "PYTHONPATH": str(folder / "package")}
        theirs = ["hydra.searchpath=[pkg://theirs.conf]", "experiment=squares", "loss=momentum_queue"]
        return [*theirs, *own, *row.words], environment
    if row.loss is not None:
        few = ["dataset.train_patches=8", "dataset.test_patches=3", "datamodule.batch_size=32"]
        method = ["experiment=embedded", f"loss={row.loss}", "trainer.max_epochs=3", "evaluation.baselines=false", *few]
        return [*method, *own, *row.words], environment
    for hue, name in enumerate(("red", "green", "blue")):
        write_pictures(folder / "pictures" / name, 12, hue)
    many = ["trainer.max_epochs=3", "backbone.drop_path_rate=0.2", "callbacks=[default]"]
    return Commands.tiny_pretraining(folder / "pictures", *many, *own, *row.words), environment


def _without(words: Sequence[str], others: Sequence[str]) -> list[str]:
    keys = {word.partition("=")[0] for word in others}
    return [word for word in words if word.partition("=")[0] not in keys]


def _train(folder: Path, words: Sequence[str], environment: Mapping[str, str]) -> None:
    _run([*words, f"out={folder}"], environment)


def _run(words: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [*COMMAND, *words], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


def _kill_after(saves: int, folder: Path, words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Start a training, kill all its processes when it has saved itself so many times; the steps that are saved."""
    last, seen, end = folder / "checkpoints" / "last.ckpt", set(), time.monotonic() + LIMIT
    before = _stamp(last)
    with (folder.parent / "killed.log").open("w+") as log:
        process = subprocess.Popen([*COMMAND, *words], env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            while len(seen) < saves:
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(words)} ended before it was killed:\n{log.read()}")
                seen |= {_stamp(last)} - {before, None}
                time.sleep(0.002)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return int(torch.load(last, weights_only=True)["global_step"])


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _compare(one: Path, other: Path) -> tuple[int, int, list[str]]:
    """Values and rows that were compared, and the names of those that differ or that only one of them has."""
    files = [dict(_flat(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True))) for run in (one, other)]
    rows = [_logged(run / "metrics.csv") for run in (one, other)]
    differences = [name for name in sorted({*files[0], *files[1]}) if not _equal(*(file.get(name) for file in files))]
    differences += [str(key) for key in sorted({*rows[0], *rows[1]}) if rows[0].get(key) != rows[1].get(key)]
    return len(files[0]), len(rows[0]), differences


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{name}{key}.")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _flat(value, f"{name}{index}.")
    elif not name.startswith(OF_THE_RUN):
        yield name.rstrip("."), tree


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _logged(path: Path) -> dict[tuple[int, str, str], list[str]]:
    """(step, epoch, name) -> its values as they are written; more than one if a step is logged twice."""
    found: dict[tuple[int, str, str], list[str]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["name"].startswith("time/"):
                found.setdefault((int(row["step"]), row["epoch"], row["name"]), []).append(row["value"])
    return found


if __name__ == "__main__":
    main()
