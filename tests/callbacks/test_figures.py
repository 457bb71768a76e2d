from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import toys
from foreign import fit
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from esvit_pl.callbacks import LearningCurve, LogFigures
from esvit_pl.callbacks.figures import named_figures
from esvit_pl.loggers import MetricsCSV, read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
    pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode"),
]


class Accuracy(pl.Callback):
    """Logs 0.1 for the first epoch, 0.3 for the third, ..., nothing for the others."""

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch % 2 == 0:
            module.log("own/accuracy", 0.1 * (trainer.current_epoch + 1), batch_size=1)


def curve(folder: Path, **options: Any) -> LearningCurve:
    return LearningCurve(folder, **{"losses": ["own/loss"], "accuracy": "own/accuracy", **options})


def module() -> Any:
    return foreign.make(foreign.Scalar)


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("late", [False, True], ids=["listed_last", "listed_first"])
def test_collects_what_a_logger_is_given_each_value_once(tmp_path, late) -> None:
    logger, mine = MetricsCSV(tmp_path), curve(tmp_path)
    callbacks = [mine, Accuracy()] if late else [Accuracy(), mine]
    fit(module(), tmp_path, *callbacks, logger=logger, max_epochs=4, log_every_n_steps=1)
    assert mine.rows == read_metrics(logger.path)
    assert [(row["step"], row["own/accuracy"]) for row in mine.rows if "own/accuracy" in row] == [
        (2, pytest.approx(0.1)),
        (8, pytest.approx(0.3)),
    ]
    assert picture(tmp_path / "learning_curve.png").std() > 10


def test_takes_losses_as_often_as_the_trainer_logs(tmp_path) -> None:
    mine = curve(tmp_path)
    fit(module(), tmp_path, mine, max_epochs=2, log_every_n_steps=2)
    assert [(row["step"], row["epoch"]) for row in mine.rows] == [(1, 0), (2, 0), (3, 1), (5, 1)]  # and epochs' ends


def test_goes_on_with_what_it_knew(tmp_path) -> None:
    whole = curve(tmp_path / "whole")
    trainer = fit(module(), tmp_path, Accuracy(), whole, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    state = torch.load(tmp_path / "second.ckpt", weights_only=True)["callbacks"]["LearningCurve[learning_curve.png]"]
    assert state["rows"] == whole.rows
    resumed = curve(tmp_path / "resumed")
    fit(module(), tmp_path, Accuracy(), resumed, max_epochs=3, ckpt_path=tmp_path / "second.ckpt")
    assert resumed.rows[: len(whole.rows)] == whole.rows
    assert [row["epoch"] for row in resumed.rows if "own/accuracy" in row] == [0, 2]


def test_draws_after_every_other_epoch_and_the_last_on_the_first_process(tmp_path) -> None:
    drawn: list[bool] = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            drawn.append(mine.path.exists())
            mine.path.unlink(missing_ok=True)

    mine = curve(tmp_path, every_n_epochs=2)
    fit(module(), tmp_path, mine, Look(), max_epochs=3)
    assert drawn == [False, True, True]

    class SecondProcess:
        is_global_zero = False

    mine._draw(SecondProcess())
    assert not mine.path.exists()


def test_the_pretrainer_needs_a_folder_alone(tmp_path) -> None:
    mine = LearningCurve(tmp_path)
    trainer = toys.trainer(tmp_path, callbacks=[mine], max_epochs=1)
    trainer.fit(toys.pretrainer(), toys.loader(16, 8))
    assert mine.rows[-1].keys() == {"step", "epoch", "train/view_loss", "train/region_loss"}
    assert picture(tmp_path / "learning_curve.png").std() > 10


def test_takes_whatever_losses_the_training_logs(tmp_path) -> None:
    class Logs(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            module.log_dict({"train/contrastive_loss": 1.0, "train/temperature": 0.1}, batch_size=1)

    mine = LearningCurve(tmp_path)
    fit(module(), tmp_path, Logs(), mine, max_epochs=1, log_every_n_steps=1)
    assert mine.rows[-1].keys() == {"step", "epoch", "train/contrastive_loss"}
    with pytest.warns(UserWarning, match=r"draws train/\*_loss, knn/top1, and none of them was logged"):
        fit(module(), tmp_path, LearningCurve(tmp_path), max_epochs=1)


def test_says_that_nothing_is_there_to_draw(tmp_path) -> None:
    with pytest.warns(
        UserWarning, match="draws nothing/here, own/accuracy, and none of them was logged .* is own/loss"
    ):
        fit(module(), tmp_path, curve(tmp_path, losses=["nothing/here"]), max_epochs=1)
    with pytest.raises(ValueError, match="draws losses, an accuracy or both, got losses=\\[\\] and accuracy=None"):
        curve(tmp_path, losses=[], accuracy=None)
    with pytest.raises(ValueError, match="LearningCurve needs every_n_epochs of 1 or more, got 0"):
        curve(tmp_path, every_n_epochs=0)


def tiny(*values: float) -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot(values)
    return figure


def test_figures_go_to_all_loggers_that_can_take_them_and_else_into_the_folder(tmp_path) -> None:
    class Takes(MetricsCSV):
        def log_figure(self, name: str, figure: Any, step: int) -> None:
            taken.append((name, step))

    class Blind(pl.loggers.Logger):
        name = version = ""
        log_metrics = log_hyperparams = lambda self, *args, **kwargs: None

    taken: list[tuple[str, int]] = []

    def draw(trainer: Any, network: Any) -> dict[str, Figure]:
        return {"a": tiny(1, 2), "b": tiny(3, 4)}

    folder, once = tmp_path / "png", {"max_epochs": 1, "log_every_n_steps": 1}
    loggers = [Takes(tmp_path), Blind(), Takes(tmp_path)]
    fit(module(), tmp_path, LogFigures(draw, name="mine", folder=folder), logger=loggers, **once)
    assert taken == [("mine/a", 2), ("mine/a", 2), ("mine/b", 2), ("mine/b", 2)]
    assert not folder.exists()
    fit(module(), tmp_path, LogFigures(draw, name="mine", folder=folder), logger=[Blind()], **once)
    assert picture(folder / "mine/a/step_000002.png").std() > 10
    fit(module(), tmp_path, LogFigures(draw, every_n_epochs=2), max_epochs=3)
    names = sorted(path.name for path in (tmp_path / "figures" / "figure" / "a").iterdir())
    assert names == ["step_000005.png", "step_000008.png"]


def test_the_function_draws_in_eval_mode_and_what_it_draws_from_generators_is_put_back(tmp_path) -> None:
    def draw(trainer: Any, network: Any) -> Figure:
        assert not network.training
        assert not torch.is_grad_enabled()
        return tiny(torch.rand(()).item(), float(np.random.rand()), random.random())  # noqa: NPY002

    def run(*callbacks: pl.Callback) -> Any:
        network = module()
        fit(network, tmp_path, *callbacks)
        return toys.state(network), foreign.generators(), network.modes

    (state, *rest), (plain, *plain_rest) = run(LogFigures(draw)), run()
    assert toys.largest_difference(state, plain) == 0
    assert rest == plain_rest


def test_figures_of_pyplot_do_not_pile_up(tmp_path) -> None:
    before = pyplot.get_fignums()
    fit(module(), tmp_path, LogFigures(lambda trainer, network: pyplot.figure()), max_epochs=2)
    assert pyplot.get_fignums() == before


def test_named_figures() -> None:
    figure = tiny(1)
    assert named_figures("x", figure) == {"x": figure}
    assert named_figures("x", {"a": figure, "b": figure}) == {"x/a": figure, "x/b": figure}
    assert named_figures("x", None) == {}
    with pytest.raises(ValueError, match="x/a must be a figure of matplotlib, a dict of them or None, got int"):
        named_figures("x", {"a": 1})
    with pytest.raises(ValueError, match="LogFigures needs a function .* got Figure, which cannot be called"):
        LogFigures(figure)
