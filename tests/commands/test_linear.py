"""esvit-linear: the same probe as the pretraining run's own, on the backbone of a checkpoint."""

from __future__ import annotations

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from esvit_pl.checkpoints import load_backbone
from esvit_pl.commands import results
from esvit_pl.configs import assemble, trainers
from esvit_pl.evaluation import Linear
from esvit_pl.modules import LinearProbe
from esvit_pl.modules.linear import fingerprint

SETTINGS = ["module.last_blocks=2", "module.lr=[0.1,1.0]", "trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def probed(pretrained, commands, pictures):
    outcome = commands.evaluate("linear", pretrained.last, pictures, *SETTINGS)
    assert outcome.code == 0, outcome.err
    return outcome


def test_it_says_what_the_pretraining_run_said(probed, pretrained):
    assert probed.results["linear"]["pretrained"] == pretrained.results["linear"]["pretrained"]


def test_its_heads_are_those_of_the_pretraining_run(probed, pretrained, monkeypatch):
    """Accuracies on eight pictures agree by chance; weights do not."""
    learnt = []
    train = Linear.train

    def witnessed(self, encoder, data):
        learnt.append(train(self, encoder, data))
        return learnt[-1]

    monkeypatch.setattr(Linear, "train", witnessed)
    cfg = OmegaConf.load(pretrained.folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    cfg.evaluation.probes = ["linear"]
    trainers.quieten()
    probes = results.probes_of(cfg, labelled=True)
    results.measure(cfg, *assemble.images(cfg), load_backbone(pretrained.last), probes, {})
    checkpoint = torch.load(probed.last, weights_only=True)
    command = LinearProbe(load_backbone(pretrained.last), 3, last_blocks=2, lr=[0.1, 1.0])
    command.load_state_dict(checkpoint["state_dict"])
    assert [fingerprint(candidates) for candidates, _ in learnt] == [fingerprint(command.candidates)]


def test_poolings_of_the_last_block(pretrained, commands, pictures):
    words = ["module.last_blocks=1", "module.pooling=[pooled,pooled+mean,max]", "trainer.max_epochs=1"]
    outcome = commands.evaluate("linear", pretrained.last, pictures, *words)
    assert outcome.code == 0, outcome.err
    assert "linear probe: pooling=pooled+mean of Swin is nothing else than pooled, which is tried once" in outcome.out
    assert {"linear/pooled/lr0.001/top1", "linear/max/lr0.001/top1"} <= outcome.results["metrics"].keys()
    assert outcome.results["metrics"]["linear/best_pooling"] in (0, 1)


def test_what_it_leaves_behind(probed):
    results = probed.results
    assert results["status"] == "finished"
    assert 0 <= results["linear"]["pretrained"] == results["metrics"]["linear/top1"] <= 1
    names = ["linear/train_loss", "linear/lr", "linear/top1", "linear/lr0.1/top1", "linear/lr1/top1", "linear/best_lr"]
    assert {*names, "time/images_per_second", "time/data_wait_share"} <= probed.names()
    assert (probed.folder / "config.yaml").is_file()
    assert (probed.folder / "environment.json").is_file()
    lines = probed.out.splitlines()
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert "linear " in next(line for line in lines if line.startswith("epoch 2/2"))
    assert f"{probed.folder}/" in lines
    assert probed.err == ""


def test_an_interrupted_probe_goes_on(probed, pretrained, commands, pictures, monkeypatch):
    step = LinearProbe.training_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(LinearProbe, "training_step", interrupted)
        stopped = commands.evaluate("linear", pretrained.last, pictures, *SETTINGS)
    assert (stopped.code, stopped.results["status"]) == (130, "stopped")
    resumed = commands.evaluate("linear", pretrained.last, pictures, *SETTINGS, f"resume_from={stopped.folder}")
    assert resumed.code == 0, resumed.err
    ends = [torch.load(run.last, weights_only=True)["state_dict"] for run in (probed, resumed)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["module.last_blocks=4"], "module.last_blocks needs n between 1 and the backbone's 2 blocks, got 4"),
        (["module.lr=-1"], "module: linear heads need one lr or several different ones, above 0"),
        (["trainer.max_epochs=0"], "trainer.max_epochs must be a whole number, 1 or more, got 0"),
        (["optimized_metric=knn/top1"], "optimized_metric=knn/top1 was not measured; there are linear/"),
        (["seed=-1"], "seed must be a whole number"),
        (["backbone=swin_micro_32px"], "another backbone than backbone= asks for"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_refused(pretrained, commands, pictures, words, said):
    given = {word.partition("=")[0]: word for word in [*SETTINGS, "trainer.max_epochs=1", *words]}
    outcome = commands.evaluate("linear", pretrained.last, pictures, *given.values())
    assert outcome.code == 1
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_data_without_labels_are_refused_with_the_remedy(pretrained, commands, unlabelled):
    outcome = commands.evaluate("linear", pretrained.last, unlabelled, *SETTINGS)
    assert outcome.code == 1
    assert "needs labels" in outcome.err
    assert "put the images into one folder for each class" in outcome.err


def test_a_batch_larger_than_the_bank_is_made_as_large_as_the_bank(pretrained, commands, pictures):
    words = [*SETTINGS[:2], "trainer.max_epochs=1"]
    large = commands.evaluate("linear", pretrained.last, pictures, *words, "datamodule.batch_size=64")
    assert large.code == 0, large.err
    assert "datamodule.batch_size=64 is more than the bank holds: the probe takes 28\n" in large.out
    right = commands.evaluate("linear", pretrained.last, pictures, *words, "datamodule.batch_size=28")
    assert large.metric("linear/train_loss") == right.metric("linear/train_loss")
    assert list(large.results["linear"]) == ["chance", "pretrained"]
    assert large.results["evaluation"]["images"] == {"train": 36, "bank": 28, "query": 8}


def test_without_arguments_it_says_what_it_needs(commands):
    outcome = commands.run("linear", "dataset=photographs")
    assert outcome.code == 1
    assert "esvit-linear needs ckpt_path=\n" in outcome.err
