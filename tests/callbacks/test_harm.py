"""The alarm when a training makes worse what it began with."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from esvit_pl.callbacks import CollapseMonitor, HarmMonitor, OnlineKNN

pytestmark = [pytest.mark.filterwarnings("ignore:.*does not have many workers")]
CLASSES = torch.eye(4).repeat(5, 1)


class Forgets(LightningModule):
    """Features are perfect at the start; every step shrinks them, and noise that is not shrunk takes over."""

    def __init__(self, forgets: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.encoder.weight.data = torch.eye(4)
        self.lr = 1.0 if forgets else 0.0

    def loader(self) -> DataLoader:
        return DataLoader(TensorDataset(CLASSES, torch.arange(4).repeat(5)), batch_size=10)

    train_dataloader = bank_dataloader = query_dataloader = loader

    def training_step(self, batch, batch_idx):
        loss = (self.encoder.weight - torch.ones(4, 4)).square().sum()  # to a network that tells nothing apart
        return {"loss": loss, "embedding": self.encoder(batch[0]).detach()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5 * self.lr)


def fit(path, module, monitor, *others, epochs=5, every=1):
    others = others or (OnlineKNN(bank="bank", query="query", k=5, every_n_epochs=every),)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=epochs, callbacks=[*others, monitor], default_root_dir=path, **options)
    trainer.fit(module)
    return trainer


def test_it_stops_a_training_that_forgets(tmp_path):
    monitor = HarmMonitor(patience=2, on_harm="stop")
    with pytest.warns(
        UserWarning, match=r"knn/top1 was 1 at the start and is 0\.25; .* below the start: 2: .*init\.lr_factor"
    ):
        trainer = fit(tmp_path, Forgets(), monitor)
    assert monitor.start == 1.0  # measured before the first step
    assert trainer.current_epoch == 2
    assert float(trainer.callback_metrics["harm/below"]) == 2


def test_it_lets_a_training_go_on_that_does_no_harm(tmp_path):
    monitor = HarmMonitor(patience=1, on_harm="stop")
    assert fit(tmp_path, Forgets(forgets=False), monitor, epochs=3).current_epoch == 3


def test_only_new_measurements_count(tmp_path):
    monitor = HarmMonitor(patience=2, on_harm="stop")
    with pytest.warns(UserWarning, match=r"below the start: 2"):
        trainer = fit(tmp_path, Forgets(), monitor, epochs=9, every=2)
    assert trainer.current_epoch == 4


def test_without_labels_it_reads_the_effective_rank(tmp_path):
    """That of four features at right angles, each as often, less their mean, is 3; of equal ones nothing is left."""
    monitor, health = HarmMonitor(patience=1, on_harm="stop"), CollapseMonitor(every_n_steps=1, window=1)
    with pytest.warns(UserWarning, match=r"health/effective_rank was 2.99 at the start and is 0;"):
        trainer = fit(tmp_path, Forgets(), monitor, health)
    assert monitor.start == pytest.approx(3, abs=0.05)
    assert trainer.current_epoch == 1


def test_a_small_fall_is_tolerated():
    """2 % of 0.8 is 0.016."""
    monitor = HarmMonitor(patience=1, start=0.8)
    assert [monitor.judge(value) for value in (0.785, 0.783)] == [False, True]
    assert HarmMonitor(patience=1, start=0.8, tolerance=0).judge(0.799)


def test_a_metric_that_nobody_logs_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"needs a callback before it that logs val/acc, got .*knn/top1"):
        fit(tmp_path, Forgets(), HarmMonitor("val/acc"))


def test_without_a_measurement_it_does_not_begin(tmp_path):
    with pytest.raises(ValueError, match=r"nobody measures them; add OnlineKNN \(callbacks.knn\) or CollapseMonitor"):
        fit(tmp_path, Forgets(), HarmMonitor(), Callback())


def test_a_resumed_monitor_goes_on_counting():
    first, second = HarmMonitor(patience=2, start=0.5), HarmMonitor(patience=2)
    assert not first.judge(0.4)
    second.load_state_dict(first.state_dict())
    assert second.judge(0.4)


def test_bad_input():
    with pytest.raises(ValueError, match="patience of 1 or more, got 0"):
        HarmMonitor(patience=0)
    with pytest.raises(ValueError, match="tolerance of 0 or more and below 1, got 1"):
        HarmMonitor(tolerance=1)
    with pytest.raises(ValueError, match="on_harm 'warn' or 'stop', got 'shout'"):
        HarmMonitor(on_harm="shout")
