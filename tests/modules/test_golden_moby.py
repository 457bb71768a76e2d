"""A whole training with MoBY, run by a Lightning Trainer, walks the way of the authors' functions."""

from __future__ import annotations

from typing import Any

import golden_files
import pytest
import pytorch_lightning as pl
import torch
from golden_files import image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from esvit_pl.backbones import swin
from esvit_pl.modules.pretrain import Pretrainer
from esvit_pl.objectives import MoBYObjective
from esvit_pl.optim import OptimizerRecipe

pytestmark = pytest.mark.golden


class Steps(Dataset):
    """Two views of the images of optimizer steps, one step after another."""

    def __init__(self, settings: dict[str, Any], trainer: pl.Trainer) -> None:
        self.settings, self.trainer = settings, trainer

    def __len__(self) -> int:
        return self.settings["steps_per_epoch"] * self.settings["batch"]

    def __getitem__(self, i: int) -> dict[str, Any]:
        step, row = divmod(self.trainer.current_epoch * len(self) + i, self.settings["batch"])
        phases = (0.1 * step, 0.1 * step + 0.7)
        return {"views": [image(self.settings["batch"], 224, phase)[row].double() for phase in phases]}


def to_network(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's names of a whole network -> ours."""
    part = golden_files.Golden("", {}, weights).part
    network = {f"backbone.{key}": value for key, value in swin.from_released(part("encoder")).items()}
    for theirs, ours in (("projector", "projection"), ("predictor", "prediction")):
        network |= {f"heads.{ours}.{key}": value for key, value in golden_files.to_mlp(part(theirs)).items()}
    return network


def pretrainer(golden: golden_files.Golden) -> Pretrainer:
    s = golden.settings
    module = Pretrainer(
        golden_files.backbone_from(golden.part("init.encoder"), s),
        MoBYObjective(temp=s["temperature"], queue_length=s["queue"], hidden_dim=s["hidden_dim"], out_dim=s["out_dim"]),
        OptimizerRecipe(
            name=s["optimizer"],
            lr=s["peak_lr"] * 256 / s["batch"],  # the file gives the peak itself
            lr_end=s["min_lr"],
            warmup_epochs=s["warmup_epochs"],
            weight_decay=s["weight_decay"],
            weight_decay_end=s["weight_decay"],
        ),
        momentum=s["momentum"],
        momentum_end=s["momentum"],
        clip_grad=None,
    ).double()
    weights = {key: value.double() for key, value in to_network(golden.part("init")).items()}
    module.student.load_state_dict(weights)
    module.teacher.load_state_dict({key: value for key, value in weights.items() if "prediction" not in key})
    module.objective.queue.keys.copy_(torch.stack([golden.tensors[f"init.queue.{n}"] for n in (0, 1)]))
    return module


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


@pytest.mark.parametrize("path", golden_files.paths("rival_moby_training"), ids=lambda path: path.stem)
def test_the_whole_training_is_the_authors(path, tmp_path):
    golden = golden_files.read(path)
    module, losses = pretrainer(golden), Losses()
    trainer = pl.Trainer(
        max_epochs=golden.settings["epochs"],
        precision="64-true",
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[losses],
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(Steps(golden.settings, trainer), golden.settings["batch"]))

    assert losses.values == pytest.approx(golden.tensors["losses"].tolist(), abs=1e-6)
    for who in ("student", "teacher"):
        mine, reference = getattr(module, who).state_dict(), to_network(golden.part(who))
        assert reference.keys() == mine.keys()
        for name, value in reference.items():
            assert (mine[name] - value).abs().max() < 1e-6, f"{who} {name}"
    for number, queue in enumerate(module.objective.queue.keys):
        assert golden_files.largest_error(queue, golden.tensors[f"queue.{number}"]) < 1e-6


@pytest.mark.parametrize("path", golden_files.paths("rival_moby_training"), ids=lambda path: path.stem)
def test_parameters_are_counted_and_grouped_as_in_the_file(path):
    golden = golden_files.read(path)
    module = pretrainer(golden)
    groups = {group["name"]: group["params"] for group in module.configure_optimizers().param_groups}
    assert sum(parameter.requires_grad for parameter in module.student.parameters()) == golden.settings["num_params"]
    assert len(groups["decay"]) == golden.settings["params_decayed"]
