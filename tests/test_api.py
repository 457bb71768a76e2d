"""The commands as functions: from a folder of JPEGs to a backbone, and nothing left behind."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_files import blocks, write_voc
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from pytorch_lightning import Callback

import esvit_pl
from esvit_pl import api
from esvit_pl.configs import main_guard
from esvit_pl.configs.compose import settings
from esvit_pl.datasets import folder
from esvit_pl.evaluation import KNN, Evaluator, Linear, SegmentationKNN

ROOT = Path(__file__).parents[1]
SMALL = {
    **{"backbone.embed_dim": 8, "backbone.num_heads": [1, 2], "backbone.window": 4, "backbone.img_size": 16},
    "augment": "embedded",
    "augment.global_size": 16,
    "augment.local_size": 8,
    "augment.num_local": 1,
    "loss": {"num_prototypes": 16, "hidden_dim": 16, "out_dim": 8},
    "optimizer": {"lr": 0.02, "warmup_epochs": 0},
    "evaluation.probes": ["knn"],
}
SPLIT = {"dataset": {"val_fraction": 0.34}}
CENTRE = {"augment.eval_resize": 16, "augment.eval_crop": 16, "augment.supervised_size": 16}
MACHINE = {"trainer": "cpu", "datamodule": {"num_workers": 0, "batch_size": 8}}


class Epochs(Callback):
    """A callback of one's own: notes the epochs that end."""

    def __init__(self) -> None:
        self.ended: list[int] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.ended.append(trainer.current_epoch)


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("calls") / "mine"
    return esvit_pl.pretrain(pictures, out, "swin_micro_32px", 2, **SMALL, **SPLIT, **CENTRE, **MACHINE)


# -- pretrain


def test_a_folder_of_jpegs_becomes_a_backbone(run):
    assert run.results["status"] == "finished"
    assert run.metrics["knn/top1"] == run.results["knn"]["pretrained"]
    assert {"train/view_loss", "train/region_loss", "train/lr"} <= run.metrics.keys()
    assert run.checkpoint == run.folder / "checkpoints" / "last.ckpt"
    names = ["attention", "comparison", "correspondence", "crops", "learning_curve", "neighbours", "pca"]
    assert list(run.figures) == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in run.figures.values())
    pooled = run.backbone(torch.zeros(2, 3, 16, 16)).pooled
    assert pooled.shape == (2, 16)
    assert not pooled.requires_grad
    assert not run.backbone.training


def test_the_backbone_is_the_teacher_of_the_checkpoint(run):
    from esvit_pl.checkpoints import load_backbone

    checkpoint = load_backbone(run.checkpoint)
    assert run.backbone.transform == checkpoint.transform
    assert run.backbone.transform.recipe.eval_crop == 16
    loaded = checkpoint.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in run.backbone.state_dict().items())


def test_the_function_and_the_command_give_the_same_weights(run, commands, pictures):
    words = ["optimizer.warmup_epochs=0", "evaluation.probes=[knn]"]
    outcome = commands.pretrain(pictures, *words)
    assert outcome.code == 0, outcome.err
    mine, other = (torch.load(path, weights_only=True)["state_dict"] for path in (run.checkpoint, outcome.last))
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert run.metrics["knn/top1"] == outcome.results["knn"]["pretrained"]


def test_esvit_table_shows_what_was_changed(run):
    from esvit_pl.runs.reading import read_run

    told = read_run(run.folder)
    assert told.status == "finished"
    assert told.overrides["backbone"] == "swin_micro_32px"
    assert told.overrides["loss.num_prototypes"] == "16"
    assert told.results["knn/top1"] == run.metrics["knn/top1"]


def test_it_shows_itself_in_a_notebook(run):
    shown = run._repr_html_()
    assert shown.count("data:image/png;base64,") == len(run.figures)
    assert "knn/top1" in shown
    assert repr(run).startswith("Result(")


def test_a_folder_that_holds_a_run_is_not_written_over(run, pictures):
    with pytest.raises(ValueError, match=r"already holds a run \(finished(?s:.*)ckpt_path=.*/checkpoints/last.ckpt"):
        esvit_pl.pretrain(pictures, run.folder, "swin_micro_32px", 2)


def test_images_and_callbacks_of_ones_own(unlabelled, tmp_path, capsys):
    images, mine = folder(unlabelled), Epochs()  # objects, not settings
    others = {**SMALL, **CENTRE, **MACHINE, "callbacks": [mine]}
    run = esvit_pl.pretrain(images, tmp_path / "own", "swin_micro_32px", 1, **others)
    assert mine.ended == [0]
    assert run.checkpoint.is_file()  # the default callbacks are there, too
    assert "no labels: k-NN accuracy (callbacks.knn) left out" in capsys.readouterr().out
    assert not any(name.startswith("knn") for name in run.metrics)
    assert "dataset" not in OmegaConf.load(run.folder / "config.yaml")


def test_callbacks_by_name_and_as_objects():
    mine = Epochs()
    split = api._callback_objects
    assert split({"callbacks": [mine], "seed": 1}) == ({"seed": 1}, [mine])
    assert split({"callbacks": mine}) == ({}, [mine])
    assert split({"callbacks": ["default", mine, "learning_curve"]}) == (
        {"callbacks": ["default", "learning_curve"]},
        [mine],
    )
    for unchanged in ({"callbacks": "none"}, {"callbacks": ["knn"]}, {"callbacks": {"knn": {"k": 3}}}, {}):
        assert split(unchanged) == (unchanged, [])
    for wrong in (Epochs, 5):
        with pytest.raises(
            ValueError, match=r"callbacks takes names of options and objects, .*\['default', MyCallback\(\)\]"
        ):
            esvit_pl.pretrain("photographs", callbacks=[wrong])


def test_data_of_ones_own_with_a_preset(pictures, tmp_path):
    files = sorted(pictures.rglob("*.jpg"))
    rows = "".join(f"{path},{path.parent.name}\n" for path in files)
    (tmp_path / "x.csv").write_text(f"path,label\n{rows}")
    kinds = [tmp_path / "x.csv", files, [(path, path.parent.name) for path in files], (files[:30], files[30:])]
    preset = {"experiment": "one_gpu_10k", "datamodule": {"batch_size": 6}, "dataset": {"val_fraction": 0.5}}
    for data in kinds:
        cfg, _, images, _ = api._prepared("pretrain", data, settings(preset))
        if images is None:  # a table is a setting
            assert cfg.dataset.file == str(tmp_path / "x.csv")
        else:
            assert len(images.train) == (30 if isinstance(data, tuple) else 36)
            assert not OmegaConf.missing_keys(cfg)  # the preset's dataset.root
    assert esvit_pl.plan(kinds[-1], "swin_micro_32px", 1, **SMALL, **CENTRE, **MACHINE).images == 30
    with pytest.raises(ValueError, match="data is int, 5: it must be a folder"):
        esvit_pl.plan(5, **preset)


def test_settings_of_the_data_hold_for_objects_too(pictures, tmp_path):
    files = sorted(pictures.rglob("*.jpg"))
    words = settings({"trainer": "cpu", "dataset": {"val_fraction": 0.5, "max_pixels": 5}})
    _, _, images, _ = api._prepared("pretrain", files, words)
    assert images is not None
    assert len(images.query) > 10
    with pytest.raises(ValueError, match="dataset.max_pixels=5"):
        images.train[0]


def test_a_call_that_a_loading_process_would_repeat_is_refused(pictures, run, tmp_path, monkeypatch):
    out = tmp_path / "x"
    for call in (lambda: esvit_pl.pretrain(pictures, out), lambda: esvit_pl.evaluate(run.checkpoint, pictures, out)):
        with monkeypatch.context() as patch:  # while such a process imports the script
            patch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
            with pytest.raises(ValueError, match=r"(?s)a process that it started has called it again .*__main__"):
                call()
        with monkeypatch.context() as patch:  # before it is started
            patch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
            patch.setattr(main_guard, "_is_guarded", lambda: False)
            with pytest.raises(ValueError, match=r"(?s)stands bare in a script, .* started by 'spawn' .*__main__"):
                call()
    assert not out.exists()


def test_what_is_missing_or_wrong_is_said(tmp_path):
    with pytest.raises(ValueError, match="pretrain needs data: a folder of images, or the name of a dataset"):
        esvit_pl.pretrain(out=tmp_path / "x")
    with pytest.raises(ValueError, match=r"data='photograph' is neither a folder .*did you mean photographs\?"):
        esvit_pl.pretrain("photograph")
    with pytest.raises(ValueError, match=r"no value for dataset.root; give each as a setting"):
        esvit_pl.pretrain("imagenet")
    with pytest.raises(ValueError, match=r"did you mean backbone=swin_tiny_w7"):
        esvit_pl.pretrain("photographs", backbone="swin_tinny_w7")
    with pytest.raises(ValueError, match="did you mean trainer.max_epochs=3"):
        esvit_pl.pretrain("photographs", trainer={"max_epoch": 3})


def test_plan_takes_the_same_arguments_and_starts_nothing(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = esvit_pl.plan(pictures, "swin_tiny_w7", 100, **MACHINE, **{"optimizer.warmup_epochs": 3})
    assert (made.images, made.global_batch, made.steps) == (36, 8, 400)
    assert made.backbone == pytest.approx(28e6, rel=0.03)
    assert "steps                 400 (4 an epoch, 100 epochs)" in str(made)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"dry_run is for the command; esvit_pl.plan\(...\) takes the same arguments"):
        esvit_pl.pretrain(pictures, tmp_path / "x", dry_run=True, **MACHINE)


# -- evaluate


def test_evaluate_is_both_commands(run, pictures, tmp_path):
    done = esvit_pl.evaluate(
        run.checkpoint,
        pictures,
        tmp_path / "measured",
        probes=["knn", "linear"],
        epochs=1,
        knn={"k": [5, 3]},
        linear={"lr": [0.1, 1.0], "last_blocks": 2},
        augment="embedded",
        **SPLIT,
        **CENTRE,
        **MACHINE,
    )
    assert {"knn/top1", "knn/k3/top1", "linear/top1", "linear/best_lr"} <= done.metrics.keys()
    assert done.results["linear"] == {"chance": pytest.approx(1 / 3), "pretrained": done.metrics["linear/top1"]}
    assert list(done.results["knn"]) == ["chance", "raw_pixels", "histogram", "untrained", "pretrained"]
    assert done.results["evaluation"]["linear"]["probes"]["linear"]["last_blocks"] == 2
    assert list(done.figures) == ["comparison"]
    assert done.checkpoint == run.checkpoint
    assert (done.folder / "knn" / "results.json").is_file()
    assert (done.folder / "linear" / "config.yaml").is_file()
    assert all(
        torch.equal(value, done.backbone.state_dict()[name]) for name, value in run.backbone.state_dict().items()
    )


class MySpread(Evaluator):
    """A probe of one's own."""

    reads = ("pooled",)
    needs_labels = False

    def run(self, encoder: Any, data: Any) -> dict[str, float]:
        return {"my_spread": float(data.features(encoder, "query").features.std(0).mean())}


NO_LABELS = {
    **{"rankme": None, "effective_rank": None, "region_diversity": None, "per_block": None},
    **{"lidar": {"views": 2, "images": 4}, "correspondence": None, "retrieval": {"images": 4}},
}
DENSE = {"segmentation_knn", "segmentation_in_context", "segmentation_linear", "keypoints"}


def test_evaluate_asks_every_probe(run, pictures, tmp_path):
    """By name, with settings under the name, and as objects, those of somebody else too."""
    own = {
        "few_shot": {"n": [2, 1]},
        "logistic": {"C": 1.0},
        **{key: value for key, value in NO_LABELS.items() if value},
    }
    names = [*NO_LABELS, "few_shot", "logistic"]
    assert {*names, *DENSE, "knn", "linear"} == {path.stem for path in (ROOT / "conf" / "evaluator").glob("*.yaml")}
    probes = [*names, KNN(k=3), Linear(epochs=1, augmented=False, last_blocks=2), MySpread()]
    done = esvit_pl.evaluate(run.checkpoint, pictures, tmp_path / "all", probes=probes, **own, **SPLIT, **MACHINE)
    tables = {name: done.results[name] for name in (*names, "knn", "linear", "my_spread")}
    for name, main in (("few_shot", "few_shot/top1"), ("rankme", "rankme"), ("my_spread", "my_spread")):
        assert tables[name]["pretrained"] == done.metrics[main]
    assert {name for name, table in tables.items() if "untrained" in table} == {*NO_LABELS, "knn", "my_spread"}
    assert {"few_shot/n1/top1", "retrieval/place", "correspondence/exact", "linear/top1"} <= done.metrics.keys()
    about = done.results["evaluation"]
    assert about["few_shot"]["probes"]["few_shot"]["n"] == [2, 1]
    assert about["knn"]["probes"]["knn"] == {}  # the object's settings are its owner's
    assert (done.folder / "lidar" / "results.json").is_file()
    assert (done.folder / "own_my_spread" / "results.json").is_file()

    again = esvit_pl.evaluate(
        run.checkpoint, pictures, tmp_path / "all", probes=["rankme"], overwrite=True, **SPLIT, **MACHINE
    )
    assert again.metrics == {"rankme": done.metrics["rankme"]}
    assert sorted(path.name for path in again.folder.iterdir()) == ["rankme", "results.json"]


def test_evaluate_gives_what_the_command_says(run, commands, pictures, tmp_path):
    words = ["evaluator@module=few_shot", "module.n=[2,1]", "dataset.val_fraction=0.34"]
    outcome = commands.evaluate("knn", run.checkpoint, pictures, *words)
    assert outcome.code == 0, outcome.err
    mine = {"probes": ["few_shot"], "few_shot": {"n": [2, 1]}, **SPLIT, **MACHINE}
    done = esvit_pl.evaluate(run.checkpoint, pictures, tmp_path / "few", **mine)
    assert done.results["few_shot"] == outcome.results["few_shot"]
    assert done.metrics == outcome.results["metrics"]


def test_evaluate_asks_dense_probes_of_a_data_set_with_masks(run, tmp_path):
    root = write_voc(tmp_path / "voc", {"train": [blocks(0), blocks(1)], "val": [blocks(7)]})
    machine = {"trainer": "cpu", "datamodule": {"num_workers": 0, "batch_size": 2}, "dataset": {"root": root}}
    found = []
    for name, probe in {"a": "segmentation_knn", "b": SegmentationKNN(k=3)}.items():
        own = {"segmentation_knn": {"k": 3}} if name == "a" else {}
        done = esvit_pl.evaluate(run.checkpoint, "voc2012", tmp_path / name, probes=[probe], **own, **machine)
        assert list(done.results["segmentation_knn"]) == ["raw_pixels", "untrained", "pretrained"]
        found.append(done.metrics)
    assert found[0] == found[1]
    with pytest.raises(
        ValueError, match="keypoints needs the name of a data set with masks or keypoints as data, such"
    ):
        esvit_pl.evaluate(run.checkpoint, probes=["keypoints"])


def test_evaluate_says_what_is_missing(run):
    for wrong in ("knn", [], KNN()):
        with pytest.raises(ValueError, match="evaluate needs probes as a list of names and Evaluators, such as"):
            esvit_pl.evaluate(run.checkpoint, "photographs", probes=wrong)
    with pytest.raises(
        ValueError, match=r"probes holds 'lidr', which is no probe; did you mean lidar\? \(corr.*, rankme"
    ):
        esvit_pl.evaluate(run.checkpoint, "photographs", probes=["knn", "lidr"])
    for wrong in (KNN, 5):
        with pytest.raises(ValueError, match="probes takes names and Evaluators, such as"):
            esvit_pl.evaluate(run.checkpoint, "photographs", probes=[wrong])
    with pytest.raises(ValueError, match="probes has knn twice"):
        esvit_pl.evaluate(run.checkpoint, "photographs", probes=["knn", KNN(k=3)])
    for probes, own in ((["knn"], {"lidar": {"views": 2}}), ([KNN()], {"knn": {"k": 3}})):
        with pytest.raises(ValueError, match=r"are settings of a probe that probes=\[.*\] does not name"):
            esvit_pl.evaluate(run.checkpoint, "photographs", probes=probes, **own)
    with pytest.raises(ValueError, match="module.viws"):
        esvit_pl.evaluate(run.checkpoint, "photographs", probes=["lidar"], lidar={"viws": 2})
    with pytest.raises(ValueError, match="experiment=embedded holds the settings of a training. esvit-knn takes"):
        esvit_pl.evaluate(run.checkpoint, "photographs", experiment="embedded")
    with pytest.raises(ValueError, match="ckpt_path=nowhere.ckpt: there is no such file"):
        esvit_pl.evaluate("nowhere.ckpt", "photographs")


# -- compose and list_backbones


def test_compose_gives_the_config_of_the_command_and_runs_nothing():
    cfg = esvit_pl.compose("pretrain", "backbone=swin_small_w7", "loss.region_start_epoch=20")
    assert (list(cfg.backbone.depths), cfg.loss.region_start_epoch) == ([2, 2, 18, 2], 20)
    assert "hydra" not in cfg
    assert OmegaConf.to_container(cfg, resolve=True)["paths"]["output_dir"].endswith("/pretrain")
    assert esvit_pl.compose("linear").trainer.max_epochs == 100


def test_compose_inside_another_hydra_application_leaves_it_alone(tmp_path):
    import hydra

    (tmp_path / "theirs.yaml").write_text("answer: 42\n")
    was_initialized = HydraConfig.initialized()
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        esvit_pl.compose("knn", "seed=3")
        assert hydra.compose("theirs").answer == 42
    assert not GlobalHydra.instance().is_initialized()
    assert HydraConfig.initialized() == was_initialized


def test_compose_says_what_is_wrong():
    with pytest.raises(ValueError, match="compose needs one of pretrain, linear, knn, embed, dense, got 'train'"):
        esvit_pl.compose("train")
    with pytest.raises(ValueError, match=r"takes settings such as 'seed=1', got the flag --cfg"):
        esvit_pl.compose("pretrain", "--cfg", "job")
    with pytest.raises(ValueError, match="^pretrain: loss=viev: did you mean loss=view"):
        esvit_pl.compose("pretrain", "loss=viev")


def test_every_backbone_is_listed_and_composes():
    names = esvit_pl.list_backbones()
    assert {"swin_tiny_w7", "swin_base_w14", "swin_micro_32px"} <= set(names)
    assert names == sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "backbone").glob("*.yaml"))
    assert esvit_pl.list_backbones("swin_t*_w14") == ["swin_tiny_w14"]


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.5, 1e-9, "view", "a b", "it's", "C:\\x\\", "a\\'b", "x=1,[2]", [1, "two", [3.5]], Path("/a b/c")],
    ids=str,
)
def test_every_value_arrives_as_it_was(value):
    cfg = esvit_pl.compose("pretrain", *settings({}, {"+mine": value}))
    assert cfg.mine == (str(value) if isinstance(value, Path) else value)


def test_options_stand_before_their_settings_and_dicts_are_unfolded():
    words = settings(
        {"backbone": None, "trainer.max_epochs": 3}, {"loss": {"out_dim": 8}, "loss.x": 1, "trainer": "cpu"}
    )
    assert words == ["trainer=cpu", "trainer.max_epochs=3", "loss.out_dim=8", "loss.x=1"]


# -- nothing left behind


def test_random_generators_filters_levels_and_environment_are_as_before(run, pictures, tmp_path):
    def state():
        level = logging.getLogger("pytorch_lightning").level
        return (level, dict(os.environ), list(warnings.filters), GlobalHydra.instance().is_initialized())

    before, numbers = state(), (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    words = {"augment": "embedded", "knn": {"k": 3}, **SPLIT, **CENTRE, **MACHINE}
    esvit_pl.evaluate(run.checkpoint, pictures, tmp_path / "again", **words)
    assert state() == before
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert (np.random.get_state()[1] == numbers[1]).all()  # noqa: NPY002
    assert random.getstate() == numbers[2]


def test_compose_and_list_backbones_load_no_torch():
    code = "import sys, esvit_pl; esvit_pl.list_backbones(); esvit_pl.compose('knn'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
