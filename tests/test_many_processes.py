"""Two processes are one: weights, teacher, centres, k-NN, linear probe, and everything that is logged.

Whole trainings on the library's own data module, with image counts that the ranks cannot share evenly.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import toys
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader

from esvit_pl import distributed
from esvit_pl.augment import Recipe
from esvit_pl.callbacks import CollapseMonitor, OnlineKNN, OnlineLinear
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.loggers import MetricsCSV, read_metrics
from esvit_pl.modules import KNNEvaluator, LinearProbe, NonFiniteLoss, Pretrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
]
RECIPE = Recipe(
    global_size=32, num_local=2, local_size=16, eval_resize=32, eval_crop=32, supervised_size=32, local_blur=0.0
)
STEPS, BANK, QUERY = 3, 29, 13  # 29 images: 3 steps of 8, 5 left out; 13: 7 and 6 on two ranks


def splits() -> Splits:
    noise = torch.Generator().manual_seed(0)

    def images(number: int) -> ArrayDataset:
        pixels = torch.randint(0, 200, (number, 3, 32, 32), generator=noise, dtype=torch.uint8)
        labels = [index % 3 for index in range(number)]
        for pixel, label in zip(pixels, labels, strict=True):
            pixel[label] += 4  # neither easy nor hopeless
        return ArrayDataset(pixels, [str(index) for index in range(number)], labels)

    return Splits(images(BANK), images(QUERY))


class CountOurs(pl.Callback):
    """Counts what `esvit_pl.distributed` sends, in epoch 1 (the first one sets things up)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: Counter[str] = Counter()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            distributed.dist = Counting(self.calls)  # type: ignore[assignment]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        (self.path / f"rank_{trainer.global_rank}").write_text(json.dumps(self.calls))
        distributed.dist = torch.distributed  # type: ignore[assignment]


class Counting:
    """torch.distributed with a count of every function that is called."""

    def __init__(self, calls: Counter[str]) -> None:
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch.distributed, name)
        if not name.startswith(("is_", "get_")):
            self.calls[name] += 1
        return function


def pretrain(path: Path, ranks: int, dtype: torch.dtype, optimizer: str) -> tuple[dict[str, torch.Tensor], list[dict]]:
    module = toys.pretrainer(optimizer={"name": optimizer, "lr": 0.5}, loss={"region_start_epoch": 1}).to(dtype)
    ours = [OnlineKNN(k=[3, 5]), OnlineLinear(lr=[0.1, 1.0]), CollapseMonitor(every_n_steps=1, window=1)]
    trainer = toys.trainer(
        path,
        max_epochs=2,
        strategy="ddp_spawn" if ranks > 1 else "auto",
        devices=ranks,
        precision="64-true" if dtype == torch.float64 else "32-true",
        callbacks=[*ours, CountOurs(path)],
        logger=MetricsCSV(path),
        log_every_n_steps=1,
    )
    data = ImageDataModule(splits(), RECIPE, batch_size=8 // ranks, eval_batch_size=4, num_workers=0)
    trainer.fit(module, datamodule=data)
    return toys.state(module), read_metrics(path / "metrics.csv")


def assert_equal_logs(one: list[dict], two: list[dict], tolerance: float, names: int) -> None:
    assert len(one) == len(two)
    seen = set()
    for mine, other in zip(one, two, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert value == pytest.approx(other[name], rel=tolerance, abs=tolerance), name
        seen |= mine.keys()
    assert len(seen) >= names, seen


@pytest.mark.parametrize(
    ("dtype", "optimizer", "tolerance"),
    [
        (torch.float64, "adamw", 1e-9),
        pytest.param(torch.float32, "sgd", 1e-5, marks=pytest.mark.slow),
    ],
    ids=["float64-adamw", "float32-sgd"],
)
def test_pretraining_on_two_processes_is_that_on_one_and_sends_next_to_nothing(tmp_path, dtype, optimizer, tolerance):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, one_log = pretrain(tmp_path / "one", 1, dtype, optimizer)
    two, two_log = pretrain(tmp_path / "two", 2, dtype, optimizer)
    assert toys.largest_difference(one, two) < tolerance
    logged = [name for row in one_log for name in row]
    assert {"train/view_loss", "train/region_loss", "train/matched_share", "knn/top1", "knn/k5/top5"} <= set(logged)
    assert {"linear/top1", "health/region_diversity", "health/effective_rank"} <= set(logged)
    assert all(0 < one_log[-1][name] < 1 for name in ("knn/top1", "linear/top1"))
    assert_equal_logs(one_log, two_log, tolerance, names=30)
    # Beside the gradients, in an epoch: centres, losses and the non-finite flag as one sum for each step; a sum of the
    # linear heads' gradients, and one of what is right; one for k-NN's. Gathered are, each with its sizes, the query
    # for k-NN, embeddings and region statistics for the monitor, whose diagnostics are a sum. For k-NN also the sizes
    # of bank and query are, and the largest class; cosines and classes of the nearest images go back.
    step, heads, right, knn, diagnostics = STEPS, STEPS, 1, 1, STEPS
    counts = [json.loads((tmp_path / "two" / f"rank_{r}").read_text()) for r in (0, 1)]
    expected = {"all_reduce": step + heads + right + knn + diagnostics + 1, "all_gather": 1 + 2 * (1 + 2 * STEPS)}
    expected |= {"all_to_all_single": 2, "ReduceOp": 1}
    assert counts == [expected, expected]
    assert json.loads((tmp_path / "one" / "rank_0").read_text()) == {}


class Witness(Pretrainer):
    """Keeps what every rank is told."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        try:
            super().on_save_checkpoint(checkpoint)
        except NonFiniteLoss as error:
            files = [Path(self.trainer.default_root_dir) / f"rank_{rank}" for rank in (0, 1)]
            files[self.trainer.global_rank].write_text(str(error))
            end = monotonic() + 60  # the process that started both ends the other one when one has failed
            while not all(file.exists() for file in files) and monotonic() < end:
                sleep(0.1)
            raise


class BadOnRankOne(toys.Noise):
    """In batches of 4 on two ranks image 13 is one of rank 1's in its second step."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        item = super().__getitem__(i)
        if i == 13:
            item["views"][0].fill_(torch.nan)
        return item


@pytest.mark.fault(
    "loss: not finite on one of two processes",
    "all end with `NonFiniteLoss` and its step; nothing is saved from that step on",
)
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_nothing_is_saved(tmp_path):
    module = toys.pretrainer()
    module.__class__ = Witness
    saver = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1)
    options = {"strategy": "ddp_spawn", "devices": 2, "callbacks": [saver], "enable_checkpointing": True}
    loader = DataLoader(BadOnRankOne(24), batch_sampler=toys.RankSlices(24, 4))
    with pytest.raises(ProcessRaisedException, match=r"NonFiniteLoss: .* optimizer step 1 \(epoch 0\)"):
        toys.trainer(tmp_path, **options).fit(module, loader)
    assert (tmp_path / "rank_0").read_text() == (tmp_path / "rank_1").read_text()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["epoch=0-step=1.ckpt"]


def evaluate(path: Path, ranks: int, what: str) -> list[dict]:
    """k-NN, or two epochs of a linear probe, of a backbone with random weights, in float64."""
    torch.manual_seed(0)
    backbone = toys.backbone().double().requires_grad_(False)
    trainer = toys.trainer(
        path,
        max_epochs=2,
        strategy="ddp_spawn" if ranks > 1 else "auto",
        devices=ranks,
        precision="64-true",
        logger=MetricsCSV(path),
        log_every_n_steps=1,
    )
    data = ImageDataModule(
        splits(), RECIPE, batch_size=8 // ranks, eval_batch_size=4, num_workers=0, train="supervised"
    )
    if what == "knn":
        trainer.validate(KNNEvaluator(backbone, k=[3, 5]), data, verbose=False)
    else:
        trainer.fit(LinearProbe(backbone, 3, last_blocks=2, lr=[0.1, 3.0]), datamodule=data)
    return read_metrics(path / "metrics.csv")


@pytest.mark.parametrize(
    ("what", "name"), [("knn", "knn/k5/top1"), pytest.param("linear", "linear/train_loss", marks=pytest.mark.slow)]
)
def test_evaluation_on_two_processes_is_that_on_one(tmp_path, what, name):
    one, two = (evaluate(tmp_path / str(ranks), ranks, what) for ranks in (1, 2))
    assert any(name in row for row in one)
    assert_equal_logs(one, two, 1e-9, names=6)
