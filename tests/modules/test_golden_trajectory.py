"""The whole LightningModule, run by a Lightning Trainer, walks the released implementation's way."""

from __future__ import annotations

from typing import Any

import golden_files
import pytest
import pytorch_lightning as pl
from golden_files import image
from torch.utils.data import DataLoader, Dataset

from esvit_pl.modules.pretrain import Pretrainer
from esvit_pl.objectives import EsViTObjective
from esvit_pl.optim import OptimizerRecipe

pytestmark = pytest.mark.golden


class Steps(Dataset):
    """The images of optimizer steps, one after another; epochs follow one another."""

    def __init__(self, settings: dict[str, Any], trainer: pl.Trainer) -> None:
        self.settings, self.trainer = settings, trainer

    def __len__(self) -> int:
        return self.settings["steps_per_epoch"] * self.settings["batch"]

    def __getitem__(self, i: int) -> dict[str, Any]:
        s = self.settings
        step, row = divmod(self.trainer.current_epoch * len(self) + i, s["batch"])
        sides = [224] * 2 + [96] * s["local_crops"]
        return {"views": [image(s["batch"], side, 0.1 * step + 0.7 * v)[row].double() for v, side in enumerate(sides)]}


def pretrainer(golden: golden_files.Golden) -> Pretrainer:
    s = golden.settings
    weights = {key: value.double() for key, value in golden_files.to_network(golden.part("init")).items()}
    backbone = golden_files.backbone_from({k: v for k, v in golden.part("init").items() if not k.startswith("head")}, s)
    region = s["region"]
    objective = EsViTObjective(
        view_weight=0.5 if region else 1,
        region_weight=0.5 if region else 0,
        num_prototypes=s["out_dim"],
        hidden_dim=s["hidden_dim"],
        out_dim=s["bottleneck_dim"],
        norm_last_layer=s["norm_last_layer"],
        teacher_temp_start=s["teacher_temp"]["start"],
        teacher_temp=s["teacher_temp"]["end"],
        teacher_temp_warmup_epochs=s["teacher_temp"]["warmup_epochs"],
    )
    recipe = OptimizerRecipe(
        name=s["optimizer"],
        lr=s["peak_lr"] * 256 / s["batch"],  # the file gives the peak itself
        lr_end=s["min_lr"],
        warmup_epochs=s["warmup_epochs"],
        weight_decay=s["weight_decay"][0],
        weight_decay_end=s["weight_decay"][1],
    )
    module = Pretrainer(
        backbone,
        objective,
        recipe,
        momentum=s["momentum"][0],
        momentum_end=s["momentum"][1],
        clip_grad=s["clip_grad"],
        freeze_prototypes_epochs=s["freeze_last_layer_epochs"],
    ).double()
    module.student.load_state_dict(weights)
    module.teacher.load_state_dict(weights)
    return module


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


@pytest.mark.parametrize("path", golden_files.paths("trajectory_"), ids=lambda path: path.stem)
def test_the_whole_training_is_the_released_one(path, tmp_path):
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

    assert losses.values == pytest.approx(golden.tensors["losses"].tolist(), abs=1e-7)
    for who in ("student", "teacher"):
        mine = getattr(module, who).state_dict()
        reference = golden_files.to_network(golden.part(who))
        assert reference.keys() == mine.keys()
        for name, value in reference.items():
            assert (mine[name] - value).abs().max() < 1e-7, f"{who} {name}"
    for name, center in module.objective.centers.items():
        assert (center.value - golden.tensors[f"center_{name}"][0]).abs().max() < 1e-7


@pytest.mark.parametrize("path", golden_files.paths("trajectory_"), ids=lambda path: path.stem)
def test_parameters_are_counted_and_grouped_as_released(path):
    """What learns is counted: with `norm_last_layer` the gains are held at 1, and do not."""
    golden = golden_files.read(path)
    module = pretrainer(golden)
    groups = {group["name"]: group["params"] for group in module.configure_optimizers().param_groups}
    assert sum(parameter.requires_grad for parameter in module.student.parameters()) == golden.settings["num_params"]
    assert len(groups["decay"]) == golden.settings["params_decayed"]
