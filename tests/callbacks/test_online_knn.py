from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import toys
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from esvit_pl.callbacks import OnlineKNN
from esvit_pl.metrics import knn_accuracy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
    pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode"),
]
LABELS = torch.arange(24) % 3
IMAGES = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)) + LABELS[:, None]
BANK, QUERY = slice(0, 15), slice(15, 24)


def loader(rows: slice = slice(None), *, shuffle: bool = False, form=lambda x, y: (x, y)) -> DataLoader:
    pairs = zip(IMAGES[rows], LABELS[rows], strict=True)
    return DataLoader([form(x, y) for x, y in pairs], batch_size=6, shuffle=shuffle)


class Foreign(pl.LightningModule):
    """A classifier that knows nothing of us. It draws from every generator and has a frozen part in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3))})
        self.frozen = nn.Dropout(0.9).eval()
        self.head = nn.Linear(5, 3)
        self.modes: list[tuple[bool, ...]] = []

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        self.modes.append(tuple(part.training for part in self.modules()))
        noise = torch.randn(()).item() + float(np.random.randn()) + random.random()  # noqa: NPY002
        return F.cross_entropy(self.head(self.frozen(self.net["trunk"](x + 0.1 * noise))), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return loader(BANK, shuffle=True)

    def odd_dataloader(self) -> DataLoader:
        return loader(QUERY, form=lambda x, y: {"pixels": x, "meta": {"class": y}})


class ReturnsDict(Foreign):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.loss(batch), "more": 1}


class TwoOptimizersByHand(Foreign):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net.parameters(), lr=0.1), torch.optim.Adam(self.head.parameters())]


def fit(module: pl.LightningModule, root, *callbacks: pl.Callback, **options) -> pl.Trainer:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    trainer = toys.trainer(root, callbacks=list(callbacks), **options)
    trainer.fit(module)
    return trainer


def measure(**options) -> OnlineKNN:
    # Shuffling bank and query draws from torch's generator, once for each of them and each epoch.
    loaders = {"bank": loader(BANK, shuffle=True), "query": loader(QUERY, shuffle=True)}
    return OnlineKNN(**{"features": "net.trunk", **loaders, "k": 5, **options})


@pytest.mark.parametrize("kind", [Foreign, ReturnsDict, TwoOptimizersByHand])
def test_a_foreign_training_is_the_same_to_the_last_bit_with_and_without(tmp_path, kind) -> None:
    def run(*callbacks: pl.Callback) -> tuple:
        module = kind()
        trainer = fit(module, tmp_path, *callbacks)
        after = (torch.rand(2).tolist(), float(np.random.rand()), random.random())  # noqa: NPY002
        return toys.state(module), module.modes, trainer.global_step, after

    state, *rest = run(measure())
    plain_state, *plain_rest = run()
    assert toys.largest_difference(state, plain_state) == 0
    assert rest == plain_rest


def test_logs_what_the_pure_function_says_of_the_eval_features(tmp_path) -> None:
    module = Foreign()
    trainer = fit(module, tmp_path, measure(k=[5, 2]))
    with torch.no_grad():
        features = module.net["trunk"].eval()(IMAGES)
    expected = knn_accuracy(features[BANK], LABELS[BANK], features[QUERY], LABELS[QUERY], k=[5, 2])
    assert expected[5].top1 < 1
    got = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert got["knn/top1"] == pytest.approx(expected[5].top1)
    assert got["knn/k2/top1"] == pytest.approx(expected[2].top1)
    assert got["knn/top5"] == 1


def test_names_loaders_dicts_functions_and_several_features(tmp_path) -> None:
    module = Foreign()
    callback = OnlineKNN(
        {"raw": lambda x: x, "trunk": "net.trunk"},
        bank="train",
        query="odd",
        k=3,
        prefix="mine",
        unpack=lambda batch: (batch["pixels"], batch["meta"]["class"]) if isinstance(batch, dict) else batch,
    )
    fit(module, tmp_path, callback)
    raw = knn_accuracy(IMAGES[BANK], LABELS[BANK], IMAGES[QUERY], LABELS[QUERY], k=3)[3]
    assert callback.last["mine/top1"] == raw.top1
    assert list(callback.last) == ["mine/top1", "mine/top5", "mine/trunk/k3/top1", "mine/trunk/k3/top5"]


def test_every_other_epoch_and_the_last(tmp_path) -> None:
    measured: list[int] = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, module) -> None:
            if callback.last:
                measured.append(trainer.current_epoch)
                callback.last = {}

    callback = measure(every_n_epochs=2)
    fit(Foreign(), tmp_path, callback, Watch(), max_epochs=5)
    assert measured == [1, 3, 4]


def test_can_be_monitored_and_keeps_its_state_to_itself(tmp_path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="best", monitor="knn/top1", mode="max")
    module = Foreign()
    callbacks = (measure(), measure(prefix="second"), saver)
    fit(module, tmp_path, *callbacks, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["OnlineKNN[knn]"]["last"]["knn/top1"] == pytest.approx(saver.best_model_score.item())
    assert set(checkpoint["state_dict"]) == set(Foreign().state_dict())
    again = measure()
    again.load_state_dict(checkpoint["callbacks"]["OnlineKNN[knn]"])
    assert again.last == checkpoint["callbacks"]["OnlineKNN[knn]"]["last"]


def test_in_float64_and_in_bfloat16(tmp_path) -> None:
    for precision in ("64-true", "bf16-mixed"):
        callback = measure()
        fit(Foreign(), tmp_path, callback, max_epochs=1, precision=precision)
        assert 0 < callback.last["knn/top1"] <= 1


def test_the_pretrainer_needs_no_argument_but_loaders(tmp_path) -> None:
    images = torch.randn(30, 3, 16, 16)
    rows = [{"image": x, "label": i % 3, "index": i} for i, x in enumerate(images)]
    callback = OnlineKNN(bank=DataLoader(rows, batch_size=8), query=DataLoader(rows, batch_size=8), k=1)
    module = toys.pretrainer()
    trainer = toys.trainer(tmp_path, callbacks=[callback], max_epochs=1)
    trainer.fit(module, toys.loader(16, 8))
    assert callback.last["knn/top1"] == 1.0  # every image finds itself


def test_in_a_lightning_trainer(tmp_path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Theirs(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Linear(6, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.trunk(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = measure(features="trunk")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=1, callbacks=[callback], default_root_dir=tmp_path, **quiet)
    trainer.fit(Theirs(), loader(BANK))
    assert trainer.callback_metrics["knn/top1"] == pytest.approx(callback.last["knn/top1"])


def test_errors_before_training_say_what_was_found(tmp_path) -> None:
    with pytest.raises(ValueError, match="features='net.body', and Foreign.net has no attribute 'body'; it has trunk"):
        fit(Foreign(), tmp_path, measure(features="net.body"))
    with pytest.raises(ValueError, match=r"looks for bank_dataloader\(\) in Foreign, and found odd_dataloader, "):
        fit(Foreign(), tmp_path, measure(bank="bank"))
    with pytest.raises(ValueError, match="found list, no callable"):
        fit(Foreign(), tmp_path, measure(features="modes"))
    with pytest.raises(ValueError, match="batches of the query have none; give unpack="):
        fit(Foreign(), tmp_path, measure(query=DataLoader(IMAGES[QUERY], batch_size=4)))
    with pytest.raises(ValueError, match="k=16 neighbours, and the bank holds 15 images"):
        fit(Foreign(), tmp_path, measure(k=16))
    with pytest.raises(ValueError, match="every_n_epochs of 1 or more, got 0"):
        OnlineKNN(every_n_epochs=0)
    with pytest.raises(ValueError, match="one feature or more, got an empty dict"):
        OnlineKNN({})


def test_data_without_labels_are_refused_in_setup(tmp_path) -> None:
    class Unlabelled(pl.LightningDataModule):
        has_labels = False

        def bank_dataloader(self) -> DataLoader:
            raise AssertionError("nothing is loaded")

        train_dataloader = query_dataloader = bank_dataloader

    trainer = toys.trainer(tmp_path, callbacks=[OnlineKNN("net.trunk")])
    with pytest.raises(ValueError, match="OnlineKNN needs labels, and the data of Unlabelled have none"):
        trainer.fit(Foreign(), Unlabelled())
