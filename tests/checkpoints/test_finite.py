"""Weights that are not numbers any more are refused wherever they are read, by name."""

from __future__ import annotations

import pytest
import torch
import toys
from pytorch_lightning.callbacks import ModelCheckpoint

from esvit_pl.checkpoints import load_backbone, read_checkpoint
from esvit_pl.checkpoints.pickled import read_pickled


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    saver = ModelCheckpoint(folder, save_last=True)
    toys.trainer(folder, callbacks=[saver], enable_checkpointing=True, max_epochs=1).fit(
        toys.pretrainer(), toys.loader(16, 8)
    )
    return folder / "last.ckpt"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name",
    ["student.backbone.norm.weight", "teacher.backbone.norm.bias", "student.heads.view.mlp.0.bias"],
)
def test_weights_of_a_broken_training_are_refused_by_name(run, tmp_path, name, value):
    content = read_pickled(run)
    content["state_dict"][name][0] = value
    torch.save(content, tmp_path / "a.ckpt")
    torch.save({}, tmp_path / "epoch_000.ckpt")
    with pytest.raises(ValueError, match=rf"in 1 of its \d+ tensors: {name}\. .*may be whole: .*epoch_000.ckpt$"):
        load_backbone(tmp_path / "a.ckpt")


def test_so_are_centres_and_moments(run, tmp_path):
    content = read_pickled(run)
    content["state_dict"]["objective.centers.view.value"][0] = float("nan")
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="tensors: objective.centers.view.value"):
        read_checkpoint(tmp_path / "a.ckpt")
    content = read_pickled(run)
    content["optimizer_states"][0]["state"][0]["exp_avg"][:] = float("inf")
    torch.save(content, tmp_path / "b.ckpt")
    load_backbone(tmp_path / "b.ckpt")  # which needs no optimizer
    with pytest.raises(ValueError, match="tensors: optimizer.exp_avg of backbone.patch_embed.proj.weight"):
        read_checkpoint(tmp_path / "b.ckpt", moments=True)


def test_only_the_first_few_are_named(tmp_path):
    state = {name: torch.full_like(value, float("nan")) for name, value in toys.backbone().state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=rf"in {len(state)} of its {len(state)} tensors: [^;]*and {len(state) - 5} more"
    ):
        read_checkpoint(tmp_path / "a.pth")


def test_other_files_beside_weights_of_others_are_not_proposed(tmp_path):
    torch.save({name: value * float("nan") for name, value in toys.backbone().state_dict().items()}, tmp_path / "a.pth")
    torch.save({}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match="Nothing can be computed with it$"):
        read_checkpoint(tmp_path / "a.pth")


def test_weights_of_16_and_8_bits(tmp_path):
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        state = {name: value.to(dtype) for name, value in toys.backbone().state_dict().items()}
        torch.save(state, tmp_path / "a.pth")
        read_checkpoint(tmp_path / "a.pth")
        state["norm.bias"][0] = float("nan")
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(ValueError, match=r"tensors: backbone.norm.bias\."):
            read_checkpoint(tmp_path / "a.pth")
