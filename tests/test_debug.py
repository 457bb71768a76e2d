"""The options of `debug=`: each does what its first lines say, beside an experiment and in the other commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_configs import compose, options

from esvit_pl.modules import Pretrainer


def test_one_step_is_taken_and_saved(commands, pictures):
    outcome = commands.pretrain(pictures, "debug=one_step")
    assert outcome.code == 0, outcome.err
    assert "after 1 epoch, 1 step" in outcome.out
    assert torch.load(outcome.last, weights_only=True)["global_step"] == 1
    assert not any(name.startswith("knn") for name in outcome.names())


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling:UserWarning")
def test_overfitting_sees_one_batch_again_and_again(commands, pictures, monkeypatch):
    seen = []
    step = Pretrainer.training_step
    monkeypatch.setattr(
        Pretrainer, "training_step", lambda self, batch, i: (seen.append(batch["views"]), step(self, batch, i))[1]
    )
    outcome = commands.pretrain(pictures, "debug=overfit", "trainer.max_epochs=40", "optimizer.lr=0.1")
    assert outcome.code == 0, outcome.err
    assert len(seen) == 40
    assert all(torch.equal(a, b) for views in seen for a, b in zip(views, seen[0], strict=True))
    losses = outcome.metric("train/region_loss")
    assert losses[-1] < losses[0]
    assert not outcome.last.exists()


def test_anomalies_are_looked_for(commands, pictures, monkeypatch):
    enabled = []
    monkeypatch.setattr(
        Pretrainer, "on_train_batch_end", lambda self, *_: enabled.append(torch.is_anomaly_check_nan_enabled())
    )
    outcome = commands.pretrain(pictures, "debug=anomaly", "trainer.max_steps=1", "callbacks=none")
    assert outcome.code == 0, outcome.err
    assert enabled == [True]


def test_a_profile_lies_in_the_run_folder(commands, pictures):
    outcome = commands.pretrain(pictures, "debug=profiler", "datamodule.batch_size=2")
    assert outcome.code == 0, outcome.err
    assert "MultiCropNetwork" in (outcome.folder / "fit-profile.txt").read_text()
    assert list(outcome.folder.glob("fit-profile*.json"))


@pytest.mark.parametrize(("name", "option"), [("knn", "one_step"), ("linear", "no_workers"), ("finetune", "one_step")])
def test_the_other_commands_take_them_too(name, option, commands, pictures, pretrained):
    words = ["module.last_blocks=2"] if name == "linear" else []
    outcome = commands.evaluate(name, pretrained.last, pictures, f"debug={option}", *words)
    assert outcome.code == 0, outcome.err
    assert outcome.results["status"] == "finished"


@pytest.mark.parametrize("option", options("debug"))
def test_an_option_wins_over_an_experiment(option):
    cfg = compose("pretrain", "experiment=embedded", f"debug={option}")
    plain = compose("pretrain", "experiment=embedded")
    assert cfg != plain or option in ("anomaly", "no_workers")  # the embedded run has no workers anyway
    assert compose("pretrain", f"debug={option}").datamodule.num_workers == (None if option == "profiler" else 0)


def test_every_option_is_named_where_people_look():
    guide = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    assert [option for option in options("debug") if f"debug={option}" not in guide] == []
