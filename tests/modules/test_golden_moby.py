"""A whole training with MoBY, run by a Lightning Trainer, walks the way of the authors' functions."""

from __future__ import annotations

import golden_files
import golden_training
import pytest
import torch
from torch import Tensor

from esvit_pl.backbones import swin
from esvit_pl.modules.pretrain import Pretrainer
from esvit_pl.objectives import MoBYObjective
from esvit_pl.optim import OptimizerRecipe

pytestmark = pytest.mark.golden


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


@pytest.mark.parametrize("path", golden_files.paths("rival_moby_training"), ids=lambda path: path.stem)
def test_the_whole_training_is_the_authors(path, tmp_path):
    golden = golden_files.read(path)
    module = pretrainer(golden)
    losses = golden_training.train(module, golden.settings, [224, 224], tmp_path)

    assert losses == pytest.approx(golden.tensors["losses"].tolist(), abs=1e-6)
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
