"""Objective and backbone know nothing of one another: one optimizer step of every option of `loss` on every option of
`backbone`, with the depths, windows and kinds of attention of the config, and all widths as small as they get.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import toys
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from esvit_pl.backbones import build
from esvit_pl.modules import Pretrainer
from esvit_pl.objectives import EsViTObjective
from esvit_pl.optim import OptimizerRecipe

CONF = Path(__file__).parents[1] / "conf"
BACKBONES, LOSSES = (sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("backbone", "loss"))
SMALL = {
    "swin": {"embed_dim": 4},
    "cvt": {"dims": [4, 4, 4, 4]},
    "vil": {"dims": [4, 4, 4, 4]},
    "deit": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    "vit": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    "resnet50": {"channels": [4, 4, 4, 4]},
    "timm": {"name": "convnextv2_atto", "depths": [1, 1, 1, 1], "dims": [4, 4, 4, 4]},
}
HEADS = {"num_prototypes": 16, "hidden_dim": 16, "out_dim": 8, "region_start_epoch": 0}
SIDES = (64, 64, 48)  # the smallest that leave ConvNeXt and ViL a region and a patch beside it


@cache
def node(group: str, option: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("esvit_pl.conf", version_base="1.3"):
        plain: Any = OmegaConf.to_container(hydra.compose("pretrain", [f"{group}={option}"])[group])
    return {name: value for name, value in plain.items() if name != "_target_"}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_step(backbone, loss, tmp_path):
    torch.manual_seed(0)
    settings = {**node("backbone", backbone), **SMALL[backbone.partition("_")[0]]}
    if "dims" in settings or "embed_dim" in settings:
        settings |= {"num_heads": [1] * len(settings["depths"])} if isinstance(settings.get("num_heads"), list) else {}
    module = Pretrainer(
        build(**settings),
        EsViTObjective(**{**node("loss", loss), **HEADS}),
        OptimizerRecipe(lr=0.1, warmup_epochs=0),
        freeze_prototypes_epochs=0,
    )
    before = {"student": toys.state(module.student), "teacher": toys.state(module.teacher)}
    images = [{"views": [torch.randn(3, side, side) for side in SIDES], "label": i, "index": i} for i in range(2)]
    trainer = toys.trainer(tmp_path, max_epochs=1)
    trainer.fit(module, DataLoader(images, batch_size=2))

    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    terms = {"train/view_loss"} | ({"train/region_loss"} if loss == "view_region" else set())
    assert terms == {name for name in values if name.endswith("_loss")}
    assert all(math.isfinite(value) for value in values.values())
    for network, old in before.items():
        learning = [name for name, p in module.student.named_parameters() if p.requires_grad]
        new = toys.state(getattr(module, network))
        still = [name for name in learning if torch.equal(new[name], old[name])]
        assert still == [], f"the {network} did not move in {still}"
