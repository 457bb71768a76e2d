"""The whole LightningModule, run by a Lightning Trainer, walks the released implementation's way."""

from __future__ import annotations

import golden_files
import golden_training
import pytest

from esvit_pl.modules.pretrain import Pretrainer
from esvit_pl.objectives import EsViTObjective
from esvit_pl.optim import OptimizerRecipe

pytestmark = pytest.mark.golden


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


@pytest.mark.parametrize("path", golden_files.paths("trajectory_"), ids=lambda path: path.stem)
def test_the_whole_training_is_the_released_one(path, tmp_path):
    golden = golden_files.read(path)
    module = pretrainer(golden)
    losses = golden_training.train(module, golden.settings, [224] * 2 + [96] * golden.settings["local_crops"], tmp_path)

    assert losses == pytest.approx(golden.tensors["losses"].tolist(), abs=1e-7)
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
