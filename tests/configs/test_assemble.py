"""From a config to parts, without a command round it."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import callbacks as lightning

from esvit_pl.augment import Recipe
from esvit_pl.callbacks import OnlineKNN, Throughput, TrainingCheckpoints
from esvit_pl.checkpoints import Checkpoint
from esvit_pl.configs import assemble, trainers, weights
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.loggers import MetricsCSV
from esvit_pl.saving import WholeCheckpoints

RECIPE = Recipe(global_size=16, num_local=1, local_size=8, eval_resize=16, eval_crop=16, supervised_size=16)
SMALL = [
    "backbone=swin_micro_32px",
    "backbone.embed_dim=8",
    "backbone.num_heads=[1,2]",
    "loss.num_prototypes=16",
    "loss.hidden_dim=16",
    "loss.out_dim=8",
    "optimizer.warmup_epochs=1",
    "trainer=cpu",
    "trainer.max_epochs=2",
]


def compose(folder: Path, *words: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("esvit_pl.conf", version_base="1.3"):
        return hydra.compose("pretrain", [*SMALL, f"paths.output_dir={folder}", *words])


def data(images: int = 20, labels: bool = True, **settings) -> ImageDataModule:
    noise = torch.zeros(images, 3, 16, 16, dtype=torch.uint8)
    names = [str(index) for index in range(images)]
    splits = Splits(ArrayDataset(noise, names, [index % 3 for index in range(images)] if labels else None))
    return ImageDataModule(splits, RECIPE, **{"batch_size": 4, "num_workers": 0, **settings})


def test_the_same_seed_gives_the_same_initial_weights(tmp_path):
    modules = [assemble.pretrainer(compose(tmp_path, f"seed={seed}"), RECIPE) for seed in (1, 1, 2)]
    first, again, other = (module.state_dict() for module in modules)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["student.heads.view.mlp.0.weight"], other["student.heads.view.mlp.0.weight"])


def test_the_pretrainer_gets_what_other_nodes_became(tmp_path):
    cfg = compose(tmp_path, "seed=4", "module.momentum=0.5", "augment.num_global=3", "dataset=photographs")
    module = assemble.pretrainer(cfg, assemble.construct(cfg, "augment"))
    assert (module.step.seed, module.step.num_global, module.step.momentum) == (4, 3, 0.5)
    assert module.optimizer.warmup_epochs == 1
    assert module.config == assemble.plain(cfg)
    assert type(module.config["backbone"]["depths"]) is list


@pytest.mark.parametrize(
    ("batches", "settings", "interval"),
    [
        (5, {}, 5),
        (5, {"accumulate_grad_batches": 2}, 2),
        (5, {"limit_train_batches": 3}, 3),
        (5, {"limit_train_batches": 0.4}, 2),
        (5, {"log_every_n_steps": 2}, 2),
        (50, {}, 10),
    ],
)
def test_an_epoch_shorter_than_the_log_interval_is_logged_all_the_same(tmp_path, batches, settings, interval):
    cfg = compose(tmp_path, *(f"trainer.{name}={value}" for name, value in settings.items()))
    assert trainers.make(cfg, data(images=4 * batches)).log_every_n_steps == interval


def test_ranks_count_in_the_length_of_an_epoch(tmp_path):
    cfg = compose(tmp_path, "trainer=ddp_cpu", "trainer.max_epochs=2")
    assert trainers.make(cfg, data(images=40)).log_every_n_steps == 5


def test_the_trainer_gets_loggers_and_callbacks_and_writes_into_the_run_folder(tmp_path):
    made = trainers.make(compose(tmp_path), data())
    assert made.default_root_dir == str(tmp_path)
    assert [type(logger) for logger in made.loggers] == [MetricsCSV]
    kinds = [type(callback) for callback in made.callbacks]
    assert {OnlineKNN, Throughput} <= set(kinds)
    assert kinds[-1] is TrainingCheckpoints  # after every measure
    assert isinstance(made.strategy.checkpoint_io, WholeCheckpoints)


def test_groups_may_be_empty_and_single_nodes_too(tmp_path):
    bare = trainers.make(compose(tmp_path, "callbacks=none", "logger=none"), data())
    assert bare.loggers == []
    assert not any(isinstance(callback, lightning.Checkpoint | OnlineKNN) for callback in bare.callbacks)
    less = trainers.make(compose(tmp_path, "callbacks.knn=null", "logger.csv=null"), data())
    assert less.loggers == []
    assert not any(isinstance(callback, OnlineKNN) for callback in less.callbacks)


def test_a_trainer_on_the_side_is_silent_and_of_the_same_kind(tmp_path):
    cfg = compose(tmp_path, "trainer.limit_val_batches=1", "trainer.precision=64-true")
    side = trainers.quiet(cfg)
    assert (side.limit_val_batches, side.precision) == (1.0, "64-true")
    assert side.loggers == []
    assert not any(isinstance(callback, lightning.Checkpoint) for callback in side.callbacks)
    assert cfg.trainer.limit_val_batches == 1


def test_without_labels_the_callbacks_that_need_them_are_left_out_and_named(tmp_path, capsys):
    cfg = compose(tmp_path)
    assert OnlineKNN in {type(callback) for callback in assemble.bag(cfg, "callbacks")}
    kinds = {type(callback) for callback in assemble.bag(trainers.without_labels(cfg), "callbacks")}
    assert OnlineKNN not in kinds
    assert Throughput in kinds
    assert capsys.readouterr().out == "no labels: k-NN accuracy (callbacks.knn) left out\n"
    assert trainers.without_labels(compose(tmp_path, "callbacks=throughput")).callbacks.keys() == {"throughput"}
    assert capsys.readouterr().out == ""


def test_images_that_are_standardised_otherwise_are_noted(capsys, monkeypatch):
    def noted(theirs: Recipe | None, **ours) -> str:
        cfg = OmegaConf.create({"augment": {"_target_": "esvit_pl.augment.Recipe", **ours}})
        weights.note_preparation(cfg, Checkpoint("a.pth", "esvit_pl", {}, {}, recipe=theirs))
        return capsys.readouterr().out

    grey = Recipe(mean=[0.5] * 3, std=[0.25] * 3)
    assert noted(Recipe()) == noted(None) == ""
    assert noted(grey) == (
        "note: a.pth was trained on images standardised otherwise: augment.mean=[0.5,0.5,0.5] there, "
        "[0.485,0.456,0.406] here; augment.std=[0.25,0.25,0.25] there, [0.229,0.224,0.225] here\n"
    )
    assert noted(grey, normalize="view").endswith("otherwise: augment.normalize=dataset there, view here\n")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert noted(grey) == ""


def test_crops_may_be_as_small_as_a_patch(tmp_path):
    backbone = assemble.construct(compose(tmp_path), "backbone")
    assemble.check_crops(Recipe(local_size=4), backbone)
    with pytest.raises(ValueError, match=r"augment: a crop of 3 px is smaller than a patch of the backbone \(4 px\)"):
        assemble.check_crops(Recipe(local_size=[96, 3], num_local=[1, 1]), backbone)
    assemble.check_crops(Recipe(local_size=3, num_local=0), backbone)


@pytest.mark.parametrize(("channels", "recipe", "remedy"), [
    (1, Recipe(), "length 3 .* set backbone.in_chans=3, or give mean and std .* one each for grey"),
    (3, Recipe(mean=[0.5], std=[0.2]), "length 1 .* set backbone.in_chans=1, or give mean and std three numbers each"),
])  # fmt: skip
def test_backbone_and_views_have_as_many_channels(tmp_path, channels, recipe, remedy):
    backbone = assemble.construct(compose(tmp_path, f"backbone.in_chans={channels}"), "backbone")
    with pytest.raises(ValueError, match=f"backbone.in_chans={channels}, and .* of {remedy}"):
        assemble.check_crops(recipe, backbone)
    fitting = Recipe() if channels == 3 else Recipe(mean=[0.5], std=[0.2])
    assemble.check_crops(fitting, backbone)


def test_parts_that_read_colours_know_how_the_views_were_normalised():
    """iGPT and masked patch prediction take mean and std off again; with others they would learn other colours."""
    recipe = Recipe(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    fitting = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    assemble.check_colors(recipe, backbone={"name": "swin"}, loss=fitting)
    with pytest.raises(
        ValueError, match=r"backbone.std=\[0.2, 0.2, 0.2\] differs from augment.std=\[0.25, 0.25, 0.25\]"
    ):
        assemble.check_colors(recipe, backbone=fitting | {"std": [0.2] * 3}, loss={})
    with pytest.raises(ValueError, match="augment.normalize=image gives each its own; set augment.normalize=dataset"):
        assemble.check_colors(Recipe(normalize="image"), backbone={}, loss={"mean": Recipe.mean, "std": Recipe.std})


def test_errors_carry_the_key_of_the_config():
    cfg = OmegaConf.create(
        {
            "optimizer": {"_target_": "esvit_pl.optim.OptimizerRecipe", "lr": -1},
            "augment": {"_target_": "esvit_pl.augment.Recipe", "num_locals": 3},
        }
    )
    with pytest.raises(ValueError, match="^optimizer: optimizer needs lr of 0 or more, got -1"):
        assemble.construct(cfg, "optimizer")
    with pytest.raises(ValueError, match="^augment.num_locals is not a setting of Recipe"):
        assemble.construct(cfg, "augment")


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "x"])
def test_a_seed_that_numpy_would_refuse_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed must be a whole number from 0 to 4294967295, got {seed}"):
        assemble.seed_weights(OmegaConf.create({"seed": seed}))


@pytest.mark.parametrize(("epochs", "known"), [(3, 3), (-1, None), (None, None)])
def test_a_training_may_have_an_end_that_is_no_epoch(epochs, known):
    assert assemble.check_epochs(OmegaConf.create({"trainer": {"max_epochs": epochs}})) == known


@pytest.mark.parametrize("epochs", [0, -2, 1.5, "two"])
def test_a_number_of_epochs_that_is_none_is_refused(epochs):
    with pytest.raises(ValueError, match=f"trainer.max_epochs must be a whole number, 1 or more, got {epochs}"):
        assemble.check_epochs(OmegaConf.create({"trainer": {"max_epochs": epochs}}))


@pytest.mark.parametrize(
    ("gpus", "settings", "said"),
    [
        (0, {"accelerator": "gpu"}, "trainer.accelerator=gpu, .* choose trainer=cpu"),
        (0, {"accelerator": "cuda", "devices": 8}, "trainer.accelerator=cuda, .* choose trainer=cpu"),
        (0, {"accelerator": "auto"}, None),
        (0, {"accelerator": "cpu", "devices": 8}, None),
        (1, {"accelerator": "gpu", "devices": 8}, "devices=8, and torch finds 1 GPU on .*accumulate_grad_batches=8 "),
        (2, {"accelerator": "auto", "devices": [0, 1, 2]}, "devices=.0, 1, 2., and torch finds 2 GPUs .*_batches=2 "),
        (2, {"accelerator": "gpu", "devices": "auto"}, None),
        (2, {"accelerator": "gpu", "devices": 2}, None),
    ],
)
def test_gpus_that_are_not_there_are_refused(monkeypatch, gpus, settings, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    cfg = OmegaConf.create({"trainer": settings})
    if said is None:
        trainers.check_devices(cfg)
        return
    with pytest.raises(ValueError, match=said):
        trainers.check_devices(cfg)
