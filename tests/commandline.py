"""The commands as a user types them, in this process: loading torch anew for each would cost seconds.

A pretraining small enough for that: three class folders of twelve pictures of 40 x 40 pixels, a third of them the
query; a Swin of two blocks, two views of 16 pixels and one of 8, 16 prototypes, four batches of 8 an epoch.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from hydra._internal.hydra import Hydra
from PIL import Image

BACKBONE = [
    "backbone=swin_micro_32px",
    "backbone.embed_dim=8",
    "backbone.num_heads=[1,2]",
    "backbone.window=4",
    "backbone.img_size=16",
]
VIEWS = [
    "augment=embedded",
    "augment.global_size=16",
    "augment.local_size=8",
    "augment.num_local=1",
    "augment.eval_resize=16",
    "augment.eval_crop=16",
    "augment.supervised_size=16",
]
MACHINE = ["trainer=cpu", "datamodule.num_workers=0", "datamodule.batch_size=8"]
TRAINING = [
    "loss.num_prototypes=16",
    "loss.hidden_dim=16",
    "loss.out_dim=8",
    "optimizer.lr=0.02",
    "optimizer.warmup_epochs=1",
    "trainer.max_epochs=2",
]


class Outcome(NamedTuple):
    """What a command leaves behind."""

    code: object
    out: str
    err: str
    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def metric(self, name: str) -> list[float]:
        """The values of one metric, in the order of the file."""
        with (self.folder / "metrics.csv").open() as file:
            return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == name]

    def names(self) -> set[str]:
        """The names of all metrics in the file."""
        with (self.folder / "metrics.csv").open() as file:
            return {row["name"] for row in csv.DictReader(file)}


class Commands:
    """Runs commands with words of a command line; every run gets a new folder below `root`."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def run(self, name: str, *words: str, folder: Path | None = None) -> Outcome:
        """``esvit-<name> words``, or ``python -m benchmarks words``."""
        self.count += 1
        folder = folder or self.root / f"{name}_{self.count}"
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        if not any(word.startswith("out=") for word in words) or name in ("convert", "bench", "table", "benchmarks"):
            words = (*words, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}")
        with as_in_a_new_process(f"esvit-{name}", words), redirect_stdout(out), redirect_stderr(err):
            try:
                import_module("benchmarks.__main__" if name == "benchmarks" else f"esvit_pl.commands.{name}").main()
            except SystemExit as stop:
                code = stop.code
        return Outcome(code, out.getvalue(), err.getvalue(), folder)

    @staticmethod
    def in_a_process(name: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """The same, begun in `folder` in a process of its own."""
        command = [sys.executable, "-m", f"esvit_pl.commands.{name}", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300, check=False)

    def pretrain(self, root: Path | str, *words: str, folder: Path | None = None) -> Outcome:
        """A tiny pretraining on the folder `root`; no probe at the end unless `words` ask for one."""
        return self.run("pretrain", *self.tiny_pretraining(root, *words), folder=folder)

    @staticmethod
    def tiny_pretraining(root: Path | str, *words: str) -> list[str]:
        """The words of such a command line."""
        data = ["dataset=folder", f"dataset.root={root}", "dataset.val_fraction=0.34"]
        return _last_of_each([*data, *BACKBONE, *VIEWS, *MACHINE, *TRAINING, "evaluation.probes=[]", *words])

    def evaluate(self, name: str, checkpoint: Path, root: Path | str, *words: str) -> Outcome:
        """``esvit-<name>`` of a checkpoint of such a pretraining."""
        data = [f"ckpt_path={checkpoint}", "dataset=folder", f"dataset.root={root}", "dataset.val_fraction=0.34"]
        return self.run(name, *_last_of_each([*data, *MACHINE, *words]))


def _last_of_each(words: list[str]) -> list[str]:
    """Flags first; Hydra refuses a key that is given twice, so a test's own words win."""
    return sorted({word.partition("=")[0]: word for word in words}.values(), key=lambda word: not word.startswith("-"))


@contextmanager
def as_in_a_new_process(program: str, words: Sequence[str]) -> Iterator[None]:
    """`sys.argv`, and afterwards the process's state as it was: environment, log handlers, lines already said."""
    from esvit_pl import printing

    interrupt = signal.getsignal(signal.SIGINT)
    argv, environment = sys.argv, dict(os.environ)
    root, lightning = logging.getLogger(), logging.getLogger("pytorch_lightning")
    handlers, levels = list(root.handlers), (root.level, lightning.level)
    sys.argv = [program, *words]
    printing.say_once.cache_clear()
    try:
        # Hydra composes a config twice, the first time for hydra.mode alone: a quarter of these tests' time.
        with patch.object(Hydra, "get_mode", return_value=None):
            yield
    finally:
        signal.signal(signal.SIGINT, interrupt)  # Lightning ignores it after Ctrl-C
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        lightning.setLevel(levels[1])


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def nothing_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no picture of their own, which takes half of the time of small ones; for tests of other things."""
    for name in ("draw_crops", "draw_results", "draw_neighbours", "draw_learned"):
        monkeypatch.setattr(f"esvit_pl.runs.pictures.{name}", lambda *_, **__: [])


def write_pictures(folder: Path, number: int, hue: int) -> None:
    """Noise, one channel a little brighter than the others: neither easy nor hopeless."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([hue, number])
    for index in range(number):
        pixels = noise.integers(0, 240, (10, 10, 3), dtype=np.uint8)
        pixels[..., hue] += 15
        Image.fromarray(pixels).resize((40, 40)).save(folder / f"{index:02d}.jpg")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 pictures in three class folders."""
    root = tmp_path_factory.mktemp("pictures")
    for hue, name in enumerate(("red", "green", "blue")):
        write_pictures(root / name, 12, hue)
    return root


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 pictures in one flat folder."""
    root = tmp_path_factory.mktemp("unlabelled")
    write_pictures(root, 16, 0)
    return root


@pytest.fixture(scope="session")
def pretrained(commands: Commands, pictures: Path) -> Outcome:
    """A whole run with everything: both probes, baselines, a numbered checkpoint every epoch."""
    outcome = commands.pretrain(
        pictures,
        "evaluation.probes=[knn,linear]",
        "evaluation.baselines=true",
        "evaluation.linear_epochs=2",
        "evaluation.linear.last_blocks=2",
        "evaluation.linear.lr=[0.1,1.0]",
        "callbacks.checkpoint.every_n_epochs=1",
    )
    assert outcome.code == 0, outcome.err
    return outcome
