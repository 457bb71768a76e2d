"""A checkpoint's backbone, built and filled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esvit_pl.augment import EvaluationTransform, Recipe
from esvit_pl.backbones import FAMILIES, Backbone, build
from esvit_pl.checkpoints.checkpoint import Checkpoint, Network
from esvit_pl.checkpoints.load_weights import MASK, fitted, load_
from esvit_pl.checkpoints.recognise import read_checkpoint, told
from esvit_pl.datasets import PixelRules


def load_backbone(
    path_or_name: str | Path, *, network: Network = "encoder", backbone: Mapping[str, Any] | None = None
) -> Backbone:
    """A pretrained backbone, in eval mode and without gradients, with the `transform` that prepares images for it.

        backbone = esvit_pl.load_backbone("RUN/checkpoints/last.ckpt")
        features = backbone(backbone.transform(PIL.Image.open("photo.jpg"))[None])
        features.pooled, features.regions, features.grid

    Args:
        path_or_name: the folder of a run, or a checkpoint of ``esvit-pretrain``; one of the released EsViT or DINO, or
            bare weights; a safetensors file; a folder that timm wrote; the name of a pretrained timm model, or
            ``hf-hub:USER/REPO`` (these two are downloaded). The format is recognised.
        network: "teacher" or "student"; "encoder" is the teacher, which the release evaluates, or without a teacher the
            student.
        backbone: settings of the backbone, all of its ``spec`` or some. They replace what the weights do not tell (a
            released CvT's windows, a released ViL's mode); the others must be those of the file. With a ``name``,
            weights of any timm architecture are read: ``{"name": "convnext_tiny"}``.

    Raises:
        ValueError: there is no such file or name, its format is not recognised, it is unsafe, it holds no such network,
            weights do not fit (by name and shape), or are not finite.
    """
    spec = backbone if backbone is not None and "name" in backbone else None
    return backbone_of(read_checkpoint(path_or_name, backbone=spec), network=network, backbone=backbone)


def backbone_of(
    checkpoint: Checkpoint, *, network: Network = "encoder", backbone: Mapping[str, Any] | None = None
) -> Backbone:
    """`load_backbone` of a checkpoint that was read already."""
    untold = [name for name in ("num_heads", "windows", "mode") if name in checkpoint.guessed]
    if untold and backbone is None:
        assumed = {name: checkpoint.backbone[name] for name in untold}
        values = ", ".join(f"{name}={value}" for name, value in assumed.items())
        keys = " ".join(f"backbone.{name}=..." for name in assumed)
        warnings.warn(
            f"the weights in {checkpoint.path} do not tell {values}; these are the published models' values. If yours "
            f"differ, give them: load_backbone({checkpoint.path!r}, backbone={assumed}), on the command line "
            f"backbone=NAME {keys}",
            stacklevel=3,
        )
    with told(checkpoint.path):
        state = checkpoint.network(network)
        made = built(settled(checkpoint, backbone), checkpoint.path)
    if f"backbone.{MASK}" in state:
        made.learn_mask()
    load_(made, fitted(state, made), f"{checkpoint.path} ({checkpoint.format})")
    with told(checkpoint.path):
        rules = PixelRules.among((checkpoint.config or {}).get("dataset"))
        made.transform = EvaluationTransform(checkpoint.recipe or Recipe(), rules)
    return made.eval().requires_grad_(False)


def built(spec: Mapping[str, Any], path: str) -> Backbone:
    """The backbone of a spec that a file gives."""
    try:
        return build(**spec)
    except (RuntimeError, MemoryError) as error:  # sizes below zero, or of more than the memory
        what = str(error).partition("\n")[0][:200]
        raise ValueError(f"{path}: the backbone that it describes cannot be built ({what})") from error


def settled(checkpoint: Checkpoint, backbone: Mapping[str, Any] | None) -> dict[str, Any]:
    """The spec to build: the file's, with the settings in `backbone` for those that the file leaves open.

    Raises:
        ValueError: the two contradict each other.
    """
    if backbone is None:
        return checkpoint.backbone
    if checkpoint.backbone["name"] not in FAMILIES and backbone.get("name") not in FAMILIES:
        # timm has several names for one architecture; the weights' shapes decide, and tell the size of position tables
        told = () if "img_size" in checkpoint.guessed else ("img_size",)
        return {**checkpoint.backbone, **{name: value for name, value in backbone.items() if name not in told}}
    open_ = {*checkpoint.guessed, "drop_path_rate"}
    differences = [
        f"{name}: checkpoint {checkpoint.backbone[name]!r}, backbone= {value!r}"
        for name, value in sorted(backbone.items())
        if name in checkpoint.backbone and checkpoint.backbone[name] != value and name not in open_
    ]
    if differences:
        raise ValueError(
            f"{checkpoint.path} is of another backbone than backbone= asks for; {'; '.join(differences)}. "
            "Leave backbone= out: the checkpoint knows its own"
        )
    return {**checkpoint.backbone, **backbone}
