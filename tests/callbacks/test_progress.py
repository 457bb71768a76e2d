from __future__ import annotations

import logging
import sys

import pytest
import toys
from pytorch_lightning.callbacks import Callback, TQDMProgressBar

from esvit_pl.callbacks import PlainProgress, TerminalProgress, progress_bar
from esvit_pl.callbacks.progress import duration, epoch_line

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
]


def test_line_of_an_epoch() -> None:
    losses = {"train/view_loss": 4.5219, "train/region_loss": 5.0, "train/lr": 0.1}
    line = epoch_line(3, 14, {"knn/top1": 0.5461, "time/images_per_second": 1203.4, **losses}, left=190)
    assert line == "epoch  3/14  view 4.522  region 5.000  k-NN 54.6%  1,203 images/s  3 min left"
    assert epoch_line(14, 14, {}, left=0) == "epoch 14/14  done"
    assert epoch_line(3, None, {}, left=None) == "epoch 3"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5340, "89 min"), (8000, "2 h 13 min")]
)
def test_duration(seconds, text) -> None:
    assert duration(seconds) == text


def test_prints_one_line_an_epoch_and_no_bar(tmp_path, capsys) -> None:
    trainer = toys.trainer(tmp_path, callbacks=[PlainProgress()], enable_progress_bar=True)
    trainer.fit(toys.pretrainer(), toys.loader(16, 8))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  view ")
    assert "  region " in lines[0]
    assert lines[0].endswith(" left")
    assert lines[1].endswith("  done")


def test_the_bar_shows_the_losses_and_the_last_knn(tmp_path) -> None:
    bar = TerminalProgress()

    class Trainer:
        loggers: tuple = ()
        callback_metrics = {"knn/top1": 0.25, "train/view_loss": 3.0, "train/lr": 1.0}
        progress_bar_metrics = {"train/view_loss": 2.0}

    assert bar.get_metrics(Trainer(), None) == {"view": "2.000", "k-NN": "25.0%"}
    trainer = toys.trainer(tmp_path, callbacks=[bar], enable_progress_bar=True, max_epochs=1)
    trainer.fit(toys.pretrainer(), toys.loader(16, 8))
    assert set(bar.get_metrics(trainer, None)) == {"view", "region"}


def test_a_bar_only_where_there_is_a_terminal(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(progress_bar(refresh_rate=7), TQDMProgressBar)
    assert progress_bar(refresh_rate=7).refresh_rate == 7
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # a notebook's stdout says that it is a terminal
    assert isinstance(progress_bar(), PlainProgress)
    monkeypatch.delitem(sys.modules, "ipykernel")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert isinstance(progress_bar(), PlainProgress)


class EverySecondEpoch(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch % 2:
            pl_module.log("knn/top1", trainer.current_epoch / 10)


@pytest.mark.parametrize("kind", [PlainProgress, TerminalProgress])
def test_a_line_repeats_no_measure_of_an_earlier_epoch(kind, tmp_path, capsys) -> None:
    trainer = toys.trainer(tmp_path, callbacks=[EverySecondEpoch(), kind()], enable_progress_bar=True, max_epochs=4)
    trainer.fit(toys.pretrainer(), toys.loader(16, 8))
    written = capsys.readouterr().out.replace("\r", "\n").splitlines()
    lines = [line for line in written if line.startswith("epoch ")]
    assert [line.split("k-NN ")[1].split()[0] if "k-NN" in line else None for line in lines] == [
        None,
        "10.0%",
        None,
        "30.0%",
    ]
    assert all("  view " in line for line in lines)


@pytest.mark.parametrize("kind", [PlainProgress, TerminalProgress])
def test_lines_stand_in_the_log_file_too(kind, tmp_path, monkeypatch) -> None:
    handler = logging.FileHandler(tmp_path / "pretrain.log")
    handler.setFormatter(logging.Formatter("%(message)s"))
    trainer = toys.trainer(tmp_path, callbacks=[kind()], enable_progress_bar=True)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    trainer.fit(toys.pretrainer(), toys.loader(16, 8))
    handler.close()
    lines = (tmp_path / "pretrain.log").read_text().splitlines()
    ours = [line.partition(" ")[0] for line in lines if not line.startswith("`Trainer.fit`")]
    assert ours == ["2", "global", "epoch", "epoch"]  # "2 epochs are less than 100, ..."
