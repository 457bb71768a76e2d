"""All callbacks of ours in trainings that are not ours: they look, measure and draw, and nothing else changes.

A new callback has to pass here: add it to `every_callback`.
"""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toys
from foreign import BANK, KINDS, PACKAGES, QUERY, loader
from matplotlib.figure import Figure

from esvit_pl.callbacks import CollapseMonitor, LearningCurve, LogFigures, OnlineKNN, OnlineLinear, Throughput

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
    pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode"),
]
MEASURED = {"knn/top1", "knn/top5", "linear/top1", "linear/top5", "linear/lr0.5/top1", "time/images_per_second"}
MEASURED |= {"health/feature_spread", "health/effective_rank", "health/alarm"}


def careless_drawing(trainer: Any, module: Any) -> Figure:
    """Draws from every generator, and looks at the network."""
    noise = torch.rand(2).tolist() + [float(np.random.rand()), random.random()]  # noqa: NPY002
    assert not module.training
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot(noise)
    return figure


def every_callback(folder: Path, *, shuffle: bool = True, double: bool = False) -> list[Any]:
    # Shuffling draws from torch's generator, whenever a loader is read.
    bank, query = loader(BANK, shuffle=shuffle, form=foreign.as_dict), loader(QUERY, shuffle=shuffle)
    as_trained = (lambda x: x.double()) if double else (lambda x: x)

    def unpack(batch: Any) -> tuple[Any, Any]:
        images, labels = foreign.unpack(batch)
        return as_trained(images), labels

    return [
        OnlineKNN("net.trunk", bank, query, k=5, unpack=unpack),
        OnlineLinear("net.trunk", query, lr=[0.5, 20.0], num_classes=3, unpack=unpack),
        LearningCurve(folder, losses=["own/loss"], every_n_epochs=2),
        LogFigures(careless_drawing, folder=folder / "drawn"),
        CollapseMonitor("net.trunk", every_n_steps=2),
        Throughput(),
    ]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_training_is_the_same_to_the_last_bit_with_and_without(tmp_path, kind, package) -> None:
    pytest.importorskip(package)

    def run(*callbacks: Any) -> tuple[Any, Any, list[Any]]:
        module = foreign.make(kind, package)
        trainer = foreign.fit(module, tmp_path, *callbacks, package=package)
        return module, trainer, [trainer.global_step, module.modes, foreign.generators()]

    module, trainer, rest = run(*every_callback(tmp_path))
    plain, _, plain_rest = run()
    assert toys.largest_difference(toys.state(module), toys.state(plain)) == 0  # and the keys are the same
    assert rest == plain_rest
    assert trainer.global_step == 6 * (2 if kind.by_hand else 1)
    assert trainer.callback_metrics.keys() >= MEASURED
    drawn = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    last = trainer.global_step - 1
    assert drawn == [
        f"drawn/figure/step_{last // 2:06d}.png",
        f"drawn/figure/step_{last:06d}.png",
        "learning_curve.png",
    ]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("monitor", ["knn/top1", "linear/top1"])
def test_checkpoints_and_early_stopping_can_monitor(tmp_path, package, monitor) -> None:
    callbacks = pytest.importorskip(f"{package}.callbacks")
    saver = callbacks.ModelCheckpoint(tmp_path, filename="best", monitor=monitor, mode="max")
    stopper = callbacks.EarlyStopping(monitor, mode="max", stopping_threshold=0.0)
    ours = every_callback(tmp_path)
    module = foreign.make(foreign.DictByHand, package)
    options = {"package": package, "max_epochs": 5, "enable_checkpointing": True}
    trainer = foreign.fit(module, tmp_path, saver, stopper, *ours, **options)
    assert trainer.current_epoch == 1  # the threshold is reached in the first epoch
    assert saver.best_model_score.item() == pytest.approx({**ours[0].last, **ours[1].last}[monitor])
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == module.state_dict().keys()
    assert {"OnlineKNN[knn]", "OnlineLinear[linear]", "LearningCurve[learning_curve.png]"} <= set(
        checkpoint["callbacks"]
    )


def two_kinds_and_the_exact_one(rank: int, port: int, folder: Path) -> None:
    """On one of two processes: weights, steps and generators with and without, and the metrics of `Exact`."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ.update(place, WORLD_SIZE="2")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for kind in (foreign.Scalar, foreign.StageForward):
        runs = []
        for callbacks in (every_callback(folder / kind.__name__), []):
            module = foreign.make(kind)
            trainer = foreign.fit(module, folder, *callbacks, strategy="ddp", devices=2)
            runs.append([toys.state(module), trainer.global_step, repr(foreign.generators())])
        found[kind.__name__] = [toys.largest_difference(runs[0][0], runs[1][0]), runs[0][1:] == runs[1][1:]]
    found["exact"] = exact(folder / "exact", rank, strategy="ddp", devices=2)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def exact(folder: Path, rank: int | None = None, **options: Any) -> dict[str, Any]:
    """Metrics, heads and weights after a training in float64; two ranks have each half of a batch of 12."""
    module = foreign.make(foreign.Exact)
    rows = [(x, y) for x, y in zip(foreign.IMAGES, foreign.LABELS, strict=True)]
    size = 12 if rank is None else 6
    batches = [list(range(start, start + size)) for start in range(size * (rank or 0), 24, 12)]
    module.train_dataloader = lambda: torch.utils.data.DataLoader(rows, batch_sampler=batches)
    callbacks = every_callback(folder, shuffle=False, double=True)
    trainer = foreign.fit(module, folder, *callbacks, precision="64-true", **options)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if "time" not in name}
    heads = {name: value for part in callbacks[1].heads for name, value in part.state_dict().items()}
    return {"metrics": metrics, "heads": heads, "weights": toys.state(module)}


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not built in")
def test_on_two_processes(tmp_path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(two_kinds_and_the_exact_one, (port, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for found in ranks:
        for kind in ("Scalar", "StageForward"):
            assert found[kind] == [0, True], kind
    one, (first, second) = exact(tmp_path / "one"), [found["exact"] for found in ranks]
    assert first["metrics"] == second["metrics"]
    assert toys.largest_difference(first["heads"], second["heads"]) == 0
    assert first["metrics"] == pytest.approx(one["metrics"], abs=1e-12)
    assert toys.largest_difference(first["heads"], one["heads"]) < 1e-9
    assert toys.largest_difference(first["weights"], one["weights"]) < 1e-9
    assert one["metrics"].keys() >= {"knn/top1", "linear/top1", "linear/lr20/top1"}
    drawn = sorted(path.name for path in (tmp_path / "exact").rglob("*.png"))
    assert drawn == ["learning_curve.png", "step_000001.png", "step_000003.png"]
