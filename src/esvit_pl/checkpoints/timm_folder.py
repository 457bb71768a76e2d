"""A backbone as a folder that timm loads: ``timm.create_model("local-dir:FOLDER", pretrained=True)``, offline.

    backbone        architecture in the folder
    Swin            timm's own Swin, so that nobody needs this package; it differs in three ways, see below
    timm's models   the same, bit for bit
    CvT, ViL        esvit_cvt_*, esvit_vil_*, which ``import esvit_pl.backbones`` registers with timm

Weights are the same to the last bit, but timm's Swin computes with them in three other ways than ours: the eps of its
layer norms, the order of rolling and padding, and the sides it takes. docs/checkpoints.md has the numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import Tensor, nn

from esvit_pl.augment import Recipe
from esvit_pl.backbones import Backbone
from esvit_pl.backbones.registry import FIRST_CONV, PREFIX, SIZES
from esvit_pl.checkpoints import safetensors_file
from esvit_pl.checkpoints.pickled import read_pickled
from esvit_pl.checkpoints.shareable import shareable_spec

CONFIG, WEIGHTS, PICKLED = "config.json", "model.safetensors", "pytorch_model.bin"
SWINS = ("tiny", "small", "base", "large")
"""Sizes of Swin after which timm names its own."""
SAME = 1e-4
"""Differences up to this share of the largest value come from the norms' eps; docs/checkpoints.md has them."""
NOT_OURS = ("num_classes", "global_pool", "drop_rate", "drop_path_rate", "dynamic_img_size", "strict_img_size")
"""Arguments of a timm model that a backbone does not have, or that it chooses by itself."""


class TimmFolder(NamedTuple):
    """The contents of a folder that timm wrote, or that we wrote for timm."""

    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    state: dict[str, Tensor]
    """Weights under timm's names, as in the file; with a classifier if the file has one."""
    description: dict[str, Any] | None
    """`safetensors_file.description` of the backbone; None if we did not write the folder."""


def save(backbone: Backbone, folder: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors``; files of these names are replaced.

    Args:
        backbone: of any family; its `transform`, if it has one, tells timm how to prepare images.
        folder: where to; it is made if it does not exist.
        about: anything else for ``config.json`` to say under ``esvit_pl``; fit for JSON.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    architecture, model_args, cfg, state = _for_timm(backbone)
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": backbone.width,
        "model_args": {**model_args, "num_classes": 0},
        "pretrained_cfg": {**_preparation(backbone), **cfg, "num_classes": 0},
        safetensors_file.KEY: safetensors_file.description(backbone, about),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    safetensors_file.write(state, folder / WEIGHTS, {"format": "pt"})


@torch.no_grad()
def differences(backbone: Backbone) -> dict[int, float]:
    """Sides at which timm's model with these weights, as `save` writes it, gives other regions than `backbone`.

    Tried are the sides of the images for which the weights were made: those of the backbone, of the evaluation and of
    the crops of its training. Where a map is no multiple of Swin's window, timm rolls it before it pads it.

    Returns:
        {pixels: largest difference on made images of this side, as a share of the largest value; infinity if timm
        refuses them}. Only differences above `SAME`; empty for all families but Swin.
    """
    if backbone.spec["name"] != "swin":
        return {}
    recipe = safetensors_file.recipe_of(backbone)
    sides = {backbone.spec["img_size"]}
    if recipe is not None:
        sides |= {recipe.eval_crop, *(view.size for view in recipe.views)}
    architecture, model_args, _, state = _for_timm(backbone)
    model = timm.create_model(architecture, **model_args, num_classes=0).eval()
    model.load_state_dict(state)
    found = {}
    for side in sorted(sides):
        images = torch.randn(2, backbone.spec["in_chans"], side, side, generator=torch.Generator().manual_seed(0))
        ours = backbone(images).regions
        try:
            theirs: Tensor = model.forward_features(images).flatten(1, 2)  # type: ignore[operator]  # timm is not typed
        except AssertionError:  # a side that is no multiple of the patch
            found[side] = math.inf
        else:
            found[side] = float((ours - theirs).abs().max() / ours.abs().max())
    return {side: share for side, share in found.items() if share > SAME}


def is_one(folder: Path) -> bool:
    """Whether `read` is for this folder: it names an architecture of timm's, or lies where timm's would."""
    return (folder / CONFIG).is_file() and not any(folder.glob("*.ckpt"))


def read(folder: str | Path) -> TimmFolder:
    """Read a folder of ours or of timm's.

    Raises:
        ValueError: one of the two files is missing or cannot be read; the message names it.
    """
    folder = Path(folder)
    config = _config(folder)
    if (folder / WEIGHTS).is_file():
        state = safetensors_file.read(folder / WEIGHTS)[0]
    elif (folder / PICKLED).is_file():
        state = cast(dict[str, Tensor], read_pickled(folder / PICKLED))
    else:
        raise ValueError(f"{folder} holds no weights: neither {WEIGHTS} nor {PICKLED}")
    cfg = config.get("pretrained_cfg", config)  # timm's older files have one level
    return TimmFolder(
        config["architecture"], config.get("model_args", {}), cfg, state, config.get(safetensors_file.KEY)
    )


def spec_of(folder: TimmFolder) -> dict[str, Any]:
    """The dict from which ``backbones.build(**spec)`` makes the folder's backbone.

    It names our backbone if ``config.json`` says so. timm's Swin in a folder of others stays timm's Swin, because it
    was trained with timm's arithmetic.
    """
    if folder.description is not None:
        return dict(folder.description["backbone"])
    args = {name: value for name, value in folder.model_args.items() if name not in NOT_OURS}
    if isinstance(args.get("img_size"), list):
        args["img_size"] = max(args["img_size"])  # timm writes both sides; ours are nominal
    size = folder.architecture.removeprefix(PREFIX)
    if folder.architecture.startswith(PREFIX) and size in SIZES:
        return {**SIZES[size], **args}
    # Where the arguments do not say for which side position tables are made, the weights' preparation does.
    nominal = {"img_size": side[-1]} if (side := folder.pretrained_cfg.get("input_size")) else {}
    return {"name": folder.architecture, **nominal, **args}


def recipe_of_timm(pretrained_cfg: Mapping[str, Any]) -> Recipe:
    """How timm prepares images for a pretrained model.

    timm's `crop_mode="border"`, of six models, becomes "center": those images get no border here.
    """
    cfg = {**{"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}, **pretrained_cfg}
    crop = cfg["input_size"][-1]
    return Recipe(
        mean=cfg.get("mean", Recipe.mean),
        std=cfg.get("std", Recipe.std),
        eval_crop=crop,
        eval_resize=math.floor(crop / cfg["crop_pct"]),  # as timm rounds
        eval_interpolation=cfg["interpolation"],
        eval_squash=cfg.get("crop_mode") == "squash",
        supervised_size=crop,
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is not a folder that timm wrote: it holds no {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or "architecture" not in config:
        theirs = ", ".join(config["architectures"]) if isinstance(config, dict) and config.get("architectures") else ""
        whose = f"; it is of the library transformers ({theirs}), whose weights have other names" if theirs else ""
        raise ValueError(
            f"{path} does not name an architecture, as timm's own files do{whose}. Give timm's model by its name, or a "
            "file with the weights as their authors published them"
        )
    if not isinstance(config["architecture"], str):
        raise ValueError(f"{path}: architecture must be a name of timm's, got {config['architecture']!r}")
    if safetensors_file.KEY in config:
        safetensors_file.known(config[safetensors_file.KEY], path)
    return config


# -- families


def _for_timm(backbone: Backbone) -> tuple[str, dict[str, Any], dict[str, Any], Mapping[str, Tensor]]:
    """Architecture, its arguments, what timm must know about its layers, and the weights under timm's names."""
    family = backbone.spec["name"]
    weights = backbone.state_dict()
    weights.pop("mask_vector", None)  # timm's models mask nothing
    if family == "swin":
        return *_swin(backbone.spec), _layers(FIRST_CONV["swin"], "head.fc"), weights
    if family in FIRST_CONV:
        state = {f"backbone.{name}": value for name, value in weights.items()}
        return *_ours(backbone.spec), _layers(f"backbone.{FIRST_CONV[family]}", "head"), state
    model = getattr(backbone, "model", None)
    if not isinstance(model, nn.Module) or not timm.is_model(family):
        raise ValueError(
            f"a backbone of the family {family!r} has no architecture in timm; save it as safetensors, or register "
            "one with timm"
        )
    return *_timms(model), _layers_of(model), model.state_dict()


def _swin(spec: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    args = {name: spec[name] for name in ("img_size", "patch_size", "in_chans", "embed_dim", "depths", "num_heads")}
    args |= {"window_size": spec["window"], "mlp_ratio": spec["mlp_ratio"], "strict_img_size": False}
    same = [size for size in SWINS if _width_and_depths(SIZES[f"swin_{size}_w7"]) == _width_and_depths(spec)]
    return f"swin_{(same or SWINS)[0]}_patch4_window7_224", args


def _width_and_depths(spec: Mapping[str, Any]) -> tuple[int, list[int]]:
    return spec["embed_dim"], list(spec["depths"])


def _ours(spec: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered size that is most like the backbone (tiny before small), and all its numbers, so that any size
    comes back."""
    args = {name: value for name, value in spec.items() if name not in ("name", "drop_path_rate")}
    sizes = sorted((size for size in SIZES if SIZES[size]["name"] == spec["name"]), reverse=True)
    nearest = max(sizes, key=lambda size: sum(SIZES[size].get(name) == value for name, value in args.items()))
    return f"{PREFIX}{nearest}", args


def _timms(model: nn.Module) -> tuple[str, dict[str, Any]]:
    args = getattr(model, "_model_args", {})  # timm's own record of the arguments
    kept = {name: value for name, value in args.items() if not name.endswith(("drop_rate", "drop_path_rate"))}
    return cast(dict[str, Any], model.pretrained_cfg)["architecture"], shareable_spec(kept)


def _layers(first_conv: str, classifier: str) -> dict[str, Any]:
    return {"fixed_input_size": False, "first_conv": first_conv, "classifier": classifier}


def _layers_of(model: nn.Module) -> dict[str, Any]:
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    kept = {name: cfg.get(name) for name in ("fixed_input_size", "first_conv", "classifier", "pool_size")}
    if cfg.get("fixed_input_size"):
        kept["input_size"] = cfg["input_size"]
    return kept


def _preparation(backbone: Backbone) -> dict[str, Any]:
    """How images become inputs, in timm's words. timm has no word for normalising each image by itself."""
    recipe = safetensors_file.recipe_of(backbone)
    if recipe is None:
        side = backbone.spec.get("img_size", 224)
        mean, std = (getattr(backbone, name, getattr(Recipe, name)) for name in ("mean", "std"))  # timm's know theirs
        recipe = Recipe(eval_resize=round(side / 0.875), eval_crop=side, mean=mean, std=std)
    return {
        "input_size": [backbone.spec.get("in_chans", len(recipe.mean)), recipe.eval_crop, recipe.eval_crop],
        "interpolation": recipe.eval_interpolation,
        "crop_pct": _share(recipe.eval_crop, recipe.eval_resize),
        "crop_mode": "squash" if recipe.eval_squash else "center",
        "mean": list(recipe.mean),
        "std": list(recipe.std),
    }


def _share(crop: int, size: int) -> float:
    """`crop` / `size`, so that timm, which rounds ``crop / share`` down, comes back to `size`."""
    share = crop / size
    return share if math.floor(crop / share) == size else math.nextafter(share, 0)
