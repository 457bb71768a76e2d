"""Objective and backbone know nothing of one another: one optimizer step of every option of `loss` on every option of
`backbone`, with the depths, windows and kinds of attention of the config, and all widths as small as they get.
"""

from __future__ import annotations

import math
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import toys
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, default_collate

from esvit_pl.backbones import build
from esvit_pl.modules import Pretrainer
from esvit_pl.objectives import Objective
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
    "resnet50w5": {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16], "width_factor": 1},
    "resnet200w2": {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16], "width_factor": 1},
    "resnet152w3": {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4], "stem_width": 4},
    "igpt": {"width": 8, "depth": 2, "num_heads": 1, "side": 4, "bits": 1, "block": 2},
    "timm": {"name": "convnextv2_atto", "depths": [1, 1, 1, 1], "dims": [4, 4, 4, 4]},
}
HEADS = {
    "num_prototypes": 16,
    "hidden_dim": 16,
    "out_dim": 8,
    "queue_length": 8,
    "region_start_epoch": 0,
    "queue_start_epoch": 0,
    "freeze_embedding": False,
    "shared_head": False,
}
TERMS = {
    "view": {"view"},
    "view_region": {"view", "region"},
    "mocov3": {"contrast"},
    "moby": {"contrast"},
    "byol": {"prediction"},
    "swav": {"assignment"},
    "simclr": {"contrast"},
    "densecl": {"contrast", "dense"},
    "ibot": {"view", "patch"},
    "simmim": {"pixels"},
    "mpp": {"color"},
    "igpt": {"color"},
}
TWO_VIEWS = {"simclr", "densecl", "simmim", "mpp"}
HIDE = {"swin", "vit", "deit"}  # families that can hide patches
SIDES = (64, 64, 48)  # the smallest that leave ConvNeXt and ViL a region and a patch beside it
SEVENS = (63, 63, 49)  # for patches of 7 px, of which losses of pixels want whole ones


@cache
def composed(group: str, option: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("esvit_pl.conf", version_base="1.3"):
        plain: Any = OmegaConf.to_container(hydra.compose("pretrain", [f"{group}={option}"])[group])
    return plain


def node(group: str, option: str) -> dict[str, Any]:
    return dict(composed(group, option))


def objective_of(loss: str, cell: int) -> Objective:
    """The objective of an option, with small heads."""
    settings = node("loss", loss)
    small = {name: value for name, value in HEADS.items() if name in settings}
    given = {"mean": [0.5] * 3, "std": [0.2] * 3} if loss == "mpp" else {"cell": cell} if loss == "simmim" else {}
    module, _, name = settings.pop("_target_").rpartition(".")
    return getattr(import_module(module), name)(**{**settings, **small, **given})


def batch(loss: str, grid: tuple[int, int], sides: tuple[int, ...]) -> list[dict[str, Any]]:
    """Four images; of two, batch norm makes 1 and -1, whatever they are."""
    sides = sides[:2] if loss in TWO_VIEWS else sides
    mask = torch.zeros(grid, dtype=torch.bool).flatten()
    mask[::2] = True
    masks = {"masks": [mask.view(grid)] * 2 + [None] * (len(sides) - 2)}
    return [
        {"views": [torch.randn(3, side, side) for side in sides], "label": i, "index": i, **masks} for i in range(4)
    ]


def collated(items: list[dict[str, Any]]) -> dict[str, Any]:
    """`default_collate`, with None where a view has no mask."""
    masks = [
        None if view[0] is None else torch.stack(view)
        for view in zip(*(item.pop("masks") for item in items), strict=True)
    ]
    return {**default_collate(items), "masks": masks}


def pairs() -> list[Any]:
    """Every backbone with EsViT's losses and every loss with one backbone of a kind; the others are slow together."""
    ours, kinds = {"view", "view_region"}, {"swin_tiny_w7", "vit_base_p16", "resnet50"}
    return [
        pytest.param(backbone, loss, marks=[] if loss in ours or backbone in kinds else pytest.mark.slow)
        for backbone in BACKBONES
        for loss in LOSSES
    ]


@pytest.mark.parametrize(("backbone", "loss"), pairs())
def test_one_step(backbone, loss, tmp_path):
    torch.manual_seed(0)
    family = backbone.partition("_")[0]
    settings = {**node("backbone", backbone), **SMALL[family]}
    settings.pop("_target_")
    if "dims" in settings or "embed_dim" in settings:
        settings |= {"num_heads": [1] * len(settings["depths"])} if isinstance(settings.get("num_heads"), list) else {}
    if family != "igpt":  # which has no stochastic depth
        settings["drop_path_rate"] = 0.0  # which may drop a block for both images
    student = build(**settings)
    sides = SEVENS if student.patch_size == 7 else SIDES
    grid = student(torch.zeros(2, 3, sides[0], sides[0])).grid
    objective = objective_of(loss, sides[0] // grid[0])

    def module() -> Pretrainer:
        recipe = OptimizerRecipe(lr=0.1, warmup_epochs=0)
        return Pretrainer(student, objective, recipe, freeze_prototypes_epochs=0, momentum=0.5, momentum_end=0.5)

    if objective.uses_masks and family not in HIDE:
        with pytest.raises(NotImplementedError, match="cannot hide patches from itself; .*swin_tiny_w7"):
            module()
        return
    if loss == "igpt" and family != "igpt":
        with pytest.raises(ValueError, match="IGPTObjective predicts pixels that the backbone has not seen"):
            module()
        return
    module = module()
    if loss == "igpt":  # whose logits begin at 0 and let no gradient through
        torch.nn.init.normal_(module.student.heads["color"].weight)
    before = {"student": toys.state(module.student)}
    if objective.uses_teacher:
        before["teacher"] = toys.state(module.teacher)
    trainer = toys.trainer(tmp_path, max_epochs=1)
    trainer.fit(module, DataLoader(batch(loss, grid, sides), batch_size=4, collate_fn=collated))

    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    terms = {f"train/{term}_loss" for term in TERMS[loss]}
    assert terms == {name for name in values if name.endswith("_loss")}
    assert all(math.isfinite(value) for value in values.values())
    for network, old in before.items():
        new = toys.state(getattr(module, network))
        learning = [name for name, p in module.student.named_parameters() if p.requires_grad and name in new]
        still = [name for name in learning if torch.equal(new[name], old[name])]
        assert still == [], f"the {network} did not move in {still}"
