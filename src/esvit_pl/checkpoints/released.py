"""Checkpoints of the released code: EsViT's (Swin, CvT, ViL, ResNet-50) and DINO's (DeiT, ViT, ResNet-50).

A training checkpoint holds ``student``, ``teacher``, ``optimizer``, ``epoch``, ``args`` and ``dino_loss``; published
backbones are often one network's weights and nothing else. Names differ from ours in prefixes and in a few layers.
"""

# k prototypes

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esvit_pl.backbones import cvt, swin, vil
from esvit_pl.checkpoints.checkpoint import Checkpoint, Moments, State, part, under
from esvit_pl.checkpoints.infer_spec import Inferred, infer_spec
from esvit_pl.checkpoints.optimizer_order import optimizer_order

HEADS = {"head": "view", "head_dense": "region"}
"""Released name of a head -> ours."""
CENTERS = {"center": "centers.view.value", "center_grid": "centers.region.value"}
"""Released name of a centre -> its name in the state of our objective."""
_LAST_LAYER = {
    "last_layer.weight_g": "prototypes.gain",
    "last_layer.weight_v": "prototypes.direction",
    "last_layer.parametrizations.weight.original0": "prototypes.gain",  # torch's weight norm since 2.1
    "last_layer.parametrizations.weight.original1": "prototypes.direction",
}
_MOMENTS = {"mu": "momentum_buffer"}  # how the released LARS calls it

Rename = Callable[[Mapping[str, Tensor]], State]
_BACKBONES: dict[str, tuple[Rename, Rename]] = {
    "swin": (swin.from_released, swin.to_released),
    "cvt": (cvt.from_released, cvt.to_released),
    "vil": (vil.from_released, vil.to_released),
}


def is_released(checkpoint: object) -> bool:
    """Whether this is a training checkpoint of the released EsViT or DINO."""
    return isinstance(checkpoint, Mapping) and any(
        isinstance(checkpoint.get(n), Mapping) for n in ("student", "teacher")
    )


def read(checkpoint: Mapping[str, Any], path: str, *, moments: bool = False) -> Checkpoint:
    """Read a training checkpoint of the released code.

    Args:
        checkpoint: what `read_pickled` returns.
        path: for messages.
        moments: whether to read the optimizer, too.

    Raises:
        ValueError: the family of the backbone is not known, or the optimizer is not the student's.
    """
    found = {name: checkpoint[name] for name in ("student", "teacher") if isinstance(checkpoint.get(name), Mapping)}
    networks, inferred = {}, None
    for name, state in found.items():
        networks[name], inferred = _network(state, path)
    assert inferred is not None
    loss = checkpoint.get("dino_loss") or {}
    args = checkpoint.get("args")
    return Checkpoint(
        path=path,
        format="released EsViT" if "center_grid" in loss or inferred.spec["name"] in _BACKBONES else "released DINO",
        backbone=inferred.spec,
        guessed=inferred.guessed,
        networks=networks,
        objective={CENTERS[name]: value.flatten() for name, value in loss.items() if name in CENTERS},
        epoch=checkpoint.get("epoch"),
        moments=_moments(checkpoint, path) if moments and checkpoint.get("optimizer") else None,
        config=vars(args) if args is not None else None,
    )


def read_weights(state: Mapping[str, Tensor], path: str, *, form: str) -> Checkpoint:
    """Read the weights of one network, with released or timm's names, with or without heads.

    Raises:
        ValueError: the family of the backbone is not known.
    """
    network, inferred = _network(state, path)
    return Checkpoint(path, form, inferred.spec, {"backbone": network}, guessed=inferred.guessed)


def to_released(source: Checkpoint) -> dict[str, Any]:
    """The file that the released code would have written.

    The released optimizer numbers its parameters. The numbers are known for Swin with AdamW or SGD; any other optimizer
    is left out.
    """
    networks = {name: _to_released(state, source.backbone["name"]) for name, state in source.networks.items()}
    if "backbone" in networks:
        return {"teacher": networks["backbone"]}
    file: dict[str, Any] = {}
    if "student" in networks:
        file["student"] = under("module.", networks["student"])
    if "teacher" in networks:
        # With batch norm the release wraps the teacher, too, for distributed training.
        wrapped = source.backbone["name"] == "cvt"
        file["teacher"] = under("module.", networks["teacher"]) if wrapped else networks["teacher"]
    if source.moments is not None and source.moments.name != "lars" and source.backbone["name"] == "swin":
        file["optimizer"] = _optimizer(source.moments, source.networks["student"], networks["student"])
    if source.epoch is not None:
        file["epoch"] = source.epoch
    if source.config is not None and source.format.startswith("released"):
        file["args"] = Namespace(**source.config)
    if centers := {
        theirs: source.objective[ours][None] for theirs, ours in CENTERS.items() if ours in source.objective
    }:
        file["dino_loss"] = centers
    return file


def save(source: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint of any format as the released code would have (`to_released`)."""
    torch.save(to_released(source), path)


# -- names


def _network(state: Mapping[str, Tensor], path: str) -> tuple[State, Inferred]:
    """One network's weights under our names, and the spec of its backbone."""
    state = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in state.items()}
    wrapped = part(state, "backbone.")  # DINO keeps backbone and head apart; EsViT's backbone contains its heads
    backbone = wrapped or {name: value for name, value in state.items() if not _is_head(name)}
    inferred = infer_spec(backbone)
    if inferred is None:
        shown = ", ".join(list(backbone)[:4])
        raise ValueError(
            f"{path} holds weights whose names belong to no known backbone ({shown}, ...). Known are Swin, CvT and ViL "
            "of the released EsViT, ViT and ResNet; any timm model is read from a folder that timm wrote, or by its "
            "name"
        )
    family = inferred.spec["name"]
    rename = _BACKBONES[family][0] if family in _BACKBONES else _as_timm_model
    is_timm_swin = family == "swin" and not any(name.startswith("layers.0.downsample.") for name in backbone)
    network = under("backbone.", backbone if is_timm_swin else rename(backbone))
    for released, ours in HEADS.items():
        head = {_to_head(name): value for name, value in part(state, f"{released}.").items()}
        network |= under(f"heads.{ours}.", head)
    return network, inferred


def _is_head(name: str) -> bool:
    return name.startswith(("head.", "head_dense."))


def _as_timm_model(state: Mapping[str, Tensor]) -> State:
    return under("model.", state)


def _to_head(name: str) -> str:
    """Released name of a head's parameter -> ours. The release has no list of layers in a head of one layer."""
    return _LAST_LAYER.get(name, re.sub(r"^mlp\.(weight|bias)$", r"mlp.0.\1", name))


def _to_released(network: State, family: str) -> State:
    backbone = part(network, "backbone.")
    backbone.pop("mask_vector", None)  # the released code masks nothing
    released = _BACKBONES[family][1](backbone) if family in _BACKBONES else part(backbone, "model.")
    wrapped = family not in _BACKBONES
    released = under("backbone.", released) if wrapped else dict(released)
    for theirs, ours in HEADS.items():
        head = part(network, f"heads.{ours}.")
        # gain before direction, as torch's weight norm registers them
        names = sorted(head, key=lambda name: (name.startswith("prototypes."), name == "prototypes.direction"))
        one_layer = "mlp.2.weight" not in head
        for name in names:
            released[f"{theirs}.{_from_head(name, one_layer=one_layer)}"] = head[name]
    return released


def _from_head(name: str, *, one_layer: bool) -> str:
    back = {"prototypes.gain": "last_layer.weight_g", "prototypes.direction": "last_layer.weight_v"}
    return back.get(name, name.replace("mlp.0.", "mlp.") if one_layer else name)


# -- the optimizer


def _moments(checkpoint: Mapping[str, Any], path: str) -> Moments:
    """The optimizer's state, by our names of the student's parameters.

    Raises:
        ValueError: the state has not the shapes of this student's parameters.
    """
    student = checkpoint["student"]
    groups = checkpoint["optimizer"]["param_groups"]
    places = [place for group in groups for place in group["params"]]
    try:
        names = optimizer_order(student, len(places))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    renamed, _ = _network(student, path)
    ours = {value.data_ptr(): name for name, value in renamed.items() if value.numel()}  # renaming copies nothing
    of = {}
    for place, name in zip(places, names, strict=True):
        state = checkpoint["optimizer"]["state"].get(place, {})
        for key, value in state.items():
            if torch.is_tensor(value) and value.ndim and value.shape != student[name].shape:
                raise ValueError(
                    f"{path}: the optimizer's {key} of {name} is {tuple(value.shape)}, and the parameter "
                    f"{tuple(student[name].shape)}"
                )
        if state and student[name].numel():
            kept = {_MOMENTS.get(key, key): torch.as_tensor(value) for key, value in state.items() if value is not None}
            of[ours[student[name].data_ptr()]] = kept
    return Moments(_optimizer_name(groups[0]), of)


def _optimizer_name(group: Mapping[str, Any]) -> str:
    if "betas" in group:
        return "adamw"
    return "lars" if "eta" in group else "sgd"


def _optimizer(moments: Moments, ours: State, released: State) -> dict[str, Any]:
    """The released optimizer's ``state_dict()``.

    Learning rate and decay in it are torch's defaults; the release sets both before every step.
    """
    order = optimizer_order(released)
    decaying = sum(released[name].ndim > 1 and not name.endswith(".bias") for name in order)
    groups = [{"params": [released[n] for n in order[:decaying]]}, {"params": [released[n] for n in order[decaying:]]}]
    groups[1]["weight_decay"] = 0.0  # type: ignore[assignment]
    made = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[moments.name](groups)
    names = {value.data_ptr(): name for name, value in ours.items() if value.numel()}
    states = [moments.of.get(names[released[name].data_ptr()], {}) for name in order]
    state = {place: state for place, state in enumerate(states) if state}
    return {"state": state, "param_groups": made.state_dict()["param_groups"]}
