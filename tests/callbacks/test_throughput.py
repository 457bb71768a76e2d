from __future__ import annotations

import pytest
import torch
import toys

from esvit_pl.callbacks import Throughput
from esvit_pl.callbacks.throughput import batch_length

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
]


def test_waiting_and_working_by_hand(monkeypatch) -> None:
    # Epoch starts at 0; the first batch comes at 3 and takes 1 s, the second at 4.5 and takes 1.5 s.
    times = iter([0.0, 0.0, 3.0, 4.0, 4.5, 6.0])
    monkeypatch.setattr("esvit_pl.callbacks.throughput.perf_counter", lambda: next(times))
    clock = Throughput()
    clock.on_train_epoch_start(None, None)
    for _ in range(2):
        clock.on_train_batch_start(None, None, None, 0)
        clock.on_train_batch_end(None, None, None, {"views": [torch.zeros(16, 3, 4, 4)]}, 0)
    logged = {}

    class Module:
        def log(self, name: str, value: float, **_) -> None:
            logged[name] = value

    class Trainer:
        world_size = 2

    clock.on_train_epoch_end(Trainer(), Module())
    assert logged == {"time/images_per_second": 2 * 32 / 6, "time/data_wait_share": 3.5 / 6}

    monkeypatch.setattr("esvit_pl.callbacks.throughput.perf_counter", lambda: 0.0)
    Throughput().on_train_epoch_end(Trainer(), Module())
    assert logged == {"time/images_per_second": 0, "time/data_wait_share": 0}  # no time is no error


def test_validation_within_an_epoch_is_neither_work_nor_waiting(monkeypatch) -> None:
    times = iter([0.0, 0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
    monkeypatch.setattr("esvit_pl.callbacks.throughput.perf_counter", lambda: next(times))
    clock = Throughput()
    clock.on_train_epoch_start(None, None)
    clock.on_train_batch_start(None, None, None, 0)
    clock.on_train_batch_end(None, None, None, torch.zeros(4), 0)
    clock.on_validation_end(None, None)
    clock.on_train_batch_start(None, None, None, 1)
    clock.on_train_batch_end(None, None, None, torch.zeros(4), 1)
    assert (clock._worked, clock._waited) == (2.0, 2.0)


def test_in_a_trainer(tmp_path) -> None:
    trainer = toys.trainer(tmp_path, callbacks=[Throughput()], max_epochs=1)
    trainer.fit(toys.pretrainer(), toys.loader(16, 8))
    assert trainer.callback_metrics["time/images_per_second"] > 0
    assert 0 <= trainer.callback_metrics["time/data_wait_share"] < 1


@pytest.mark.parametrize(
    ("batch", "length"),
    [
        ((torch.zeros(5, 2), torch.zeros(5)), 5),
        ({"name": ["a"], "views": [torch.zeros(7, 3), torch.zeros(7, 3)]}, 7),
        (torch.zeros(3), 3),
        ({"scalar": torch.zeros(())}, 0),
        ("nothing", 0),
    ],
)
def test_batch_length(batch, length) -> None:
    assert batch_length(batch) == length
