"""esvit-finetune: the whole backbone of a checkpoint learns to classify, and its checkpoint is one like any other."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from esvit_pl.checkpoints import load_backbone
from esvit_pl.modules import FineTuning
from esvit_pl.modules.finetune import load_classifier
from esvit_pl.runs.claim import resume_words

SETTINGS = ["module.lr=0.02", "module.ema_decay=0.9", "trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def tuned(pretrained, commands, pictures):
    outcome = commands.evaluate("finetune", pretrained.last, pictures, *SETTINGS)
    assert outcome.code == 0, outcome.err
    return outcome


def test_what_it_leaves_behind(tuned):
    results = tuned.results
    assert results["status"] == "finished"
    assert list(results["finetune"]) == ["chance", "pretrained"]
    assert 0 <= results["finetune"]["pretrained"] == results["metrics"]["finetune/ema_top1"] <= 1
    names = ["finetune/train_loss", "finetune/lr", "finetune/top1", "finetune/top5", "finetune/ema_top1"]
    assert {*names, "time/images_per_second"} <= tuned.names()
    lines = tuned.out.splitlines()
    assert "fine-tuning " in next(line for line in lines if line.startswith("epoch 2/2  loss "))
    assert any(line.startswith("pretrained backbone ") for line in lines)
    assert tuned.err == ""
    assert OmegaConf.load(tuned.folder / "config.yaml").datamodule.rand_augment == "rand-m9-mstd0.5-inc1"


def test_other_commands_read_its_checkpoint(tuned, pretrained, commands, pictures, tmp_path):
    """Images are prepared as in the pretraining, whose checkpoint said how."""
    measured = commands.evaluate("knn", tuned.last, pictures, "module.k=3")
    assert measured.code == 0, measured.err
    assert "preparation (the checkpoint's): size 16, crop 16" in measured.out
    outcome = commands.run(
        "convert", f"ckpt_path={tuned.last}", "to=safetensors", f"out={tmp_path / 'tuned.safetensors'}"
    )
    assert outcome.code == 0, outcome.err
    one, other = load_backbone(tuned.last), load_backbone(tmp_path / "tuned.safetensors")
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(one(images).pooled, other(images).pooled)
    assert not torch.allclose(one(images).pooled, load_backbone(pretrained.last)(images).pooled)
    assert load_classifier(tuned.folder)(images).shape == (2, 3)


def test_from_scratch_it_begins_with_other_weights_and_fills_a_row_of_its_own(tuned, pretrained, commands, pictures):
    words = ["trainer.max_epochs=1", "module.lr=0", "module.lr_end=0", "datamodule.rand_augment=null"]
    first = commands.evaluate("finetune", pretrained.last, pictures, *words)
    scratch = commands.evaluate("finetune", pretrained.last, pictures, *words, "from_scratch=true")
    assert scratch.code == 0, scratch.err
    assert list(scratch.results["finetune"]) == ["chance", "from_scratch"]
    assert "trained from scratch" in scratch.out
    name = "layers.0.blocks.0.mlp.fc1.weight"
    weights = [load_backbone(run.last).state_dict()[name] for run in (pretrained, first, scratch)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert load_backbone(first.last).spec == load_backbone(scratch.last).spec


def test_an_interrupted_one_goes_on(tuned, pretrained, commands, pictures, monkeypatch):
    step = FineTuning.training_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "training_step", interrupted)
        stopped = commands.evaluate("finetune", pretrained.last, pictures, *SETTINGS)
    assert (stopped.code, stopped.results["status"]) == (130, "stopped")
    assert resume_words(stopped.folder)[0] == "esvit-finetune"
    resumed = commands.evaluate("finetune", pretrained.last, pictures, *SETTINGS, f"resume_from={stopped.folder}")
    assert resumed.code == 0, resumed.err
    ends = [torch.load(run.last, weights_only=True)["state_dict"] for run in (tuned, resumed)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_pretraining_begins_with_its_weights(tuned, commands, pictures):
    outcome = commands.pretrain(pictures, f"init_from={tuned.last}", "trainer.max_epochs=1", "callbacks.knn=null")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["module.layer_decay=2"], "module: FineTuning needs layer_decay in [0, 1], got 2"),
        (["datamodule.rand_augment=m9"], "datamodule.rand_augment must be words of timm's RandAugment, such as"),
        (["module.lr=-1"], "module: optimizer needs lr of 0 or more, got -1"),
        (["trainer.max_epochs=0"], "trainer.max_epochs must be a whole number, 1 or more, got 0"),
        (["module.layr_decay=1"], "layer_decay"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_refused(pretrained, commands, pictures, words, said):
    given = {word.partition("=")[0]: word for word in ["trainer.max_epochs=1", *words]}
    outcome = commands.evaluate("finetune", pretrained.last, pictures, *given.values())
    assert outcome.code == 1
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_data_without_labels_are_refused_with_the_remedy(pretrained, commands, unlabelled):
    outcome = commands.evaluate("finetune", pretrained.last, unlabelled)
    assert outcome.code == 1
    assert "esvit-finetune needs labels, and the images have none" in outcome.err


def test_without_arguments_it_says_what_it_needs(commands):
    outcome = commands.run("finetune", "dataset=photographs")
    assert outcome.code == 1
    assert "esvit-finetune needs ckpt_path=\n" in outcome.err
