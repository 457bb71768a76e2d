from __future__ import annotations

import pytest
import torch
import toys
from pytorch_lightning.callbacks import ModelCheckpoint

from esvit_pl.checkpoints import load_backbone, read_checkpoint
from esvit_pl.checkpoints.pickled import read_pickled
from esvit_pl.checkpoints.pretraining_file import is_ours


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    module = toys.pretrainer(config={"note": "plain"})
    saver = ModelCheckpoint(folder, save_last=True)
    toys.trainer(folder, callbacks=[saver], enable_checkpointing=True).fit(module, toys.loader(16, 8))
    return module, folder / "last.ckpt"


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_the_backbone_comes_back_from_the_checkpoint_alone(trained, network):
    module, path = trained
    backbone = load_backbone(path, network=network)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(x).pooled, getattr(module, network).backbone(x).pooled)
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_checkpoint_says_what_it_is(trained):
    module, path = trained
    checkpoint = read_pickled(path)
    assert is_ours(checkpoint)
    assert checkpoint["esvit_pl"]["format"] == 1
    source = read_checkpoint(path)
    assert source.format == "esvit_pl"
    assert source.backbone == module.student.backbone.spec
    assert source.config == {"note": "plain"}
    assert source.epoch == 2
    assert source.guessed == ()


def test_networks_centers_and_moments_are_the_modules(trained):
    module, path = trained
    source = read_checkpoint(path, moments=True)
    assert toys.largest_difference(source.networks["student"], toys.state(module.student)) == 0
    assert toys.largest_difference(source.networks["teacher"], toys.state(module.teacher)) == 0
    for name, center in module.objective.centers.items():
        assert torch.equal(source.centers[name], center.value)
    optimizer = module.optimizers().optimizer
    assert source.moments.name == "adamw"
    for name, parameter in module.student.named_parameters():
        assert torch.equal(source.moments.of[name]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_images_are_prepared_as_in_the_training(tmp_path, trained):
    checkpoint = read_pickled(trained[1])
    augment = {"_target_": "esvit_pl.augment.Recipe", "mean": [0.1, 0.2, 0.3], "eval_resize": 40, "eval_crop": 32}
    checkpoint["esvit_pl"]["config"] = {"augment": augment}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt").recipe.mean == (0.1, 0.2, 0.3)
    augment["_target_"] = "mine.Recipe"
    torch.save(checkpoint, tmp_path / "b.ckpt")
    assert read_checkpoint(tmp_path / "b.ckpt").recipe is None
