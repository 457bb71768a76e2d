"""Checkpoints of the released code: EsViT's (Swin, CvT, ViL, ResNet-50) and DINO's (DeiT, ViT, ResNet-50).

A training checkpoint holds ``student``, ``teacher``, ``optimizer``, ``epoch``, ``args`` and ``dino_loss``; published
backbones are often one network's weights and nothing else. Names differ from ours in prefixes and in a few layers.
"""

# k prototypes

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from esvit_pl.backbones import FAMILIES, build, cvt, swin, vil
from esvit_pl.checkpoints import timm_names
from esvit_pl.checkpoints.checkpoint import Checkpoint, Moments, State, part, under
from esvit_pl.checkpoints.infer_spec import FIRST_WEIGHTS, Inferred, infer_spec, recognised
from esvit_pl.checkpoints.load_weights import MASK, has_no_part
from esvit_pl.checkpoints.optimizer_order import optimizer_order
from esvit_pl.checkpoints.timm_names import unchunked
from esvit_pl.checkpoints.unwrap import before, flattened, innermost, is_weight, prefixes, roles, within
from esvit_pl.whole import replacing

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


def read(
    checkpoint: Mapping[str, Any], path: str, *, moments: bool = False, backbone: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Read a training checkpoint of the released code.

    Args:
        checkpoint: what `read_pickled` returns.
        path: for messages.
        moments: whether to read the optimizer, too.
        backbone: as in `read_weights`.

    Raises:
        ValueError: the family of the backbone is not known, or the optimizer is not the student's.
    """
    weights = read_weights(checkpoint, path, form="", backbone=backbone)
    loss = checkpoint.get("dino_loss") or {}
    args = checkpoint.get("args")
    is_esvit = "center_grid" in loss or weights.backbone["name"] in _BACKBONES
    has_moments = moments and checkpoint.get("optimizer") and "student" in weights.networks
    return replace(
        weights,
        format="released EsViT" if is_esvit else "released DINO",
        objective={CENTERS[name]: value.flatten() for name, value in loss.items() if name in CENTERS},
        epoch=checkpoint.get("epoch"),
        moments=_moments(checkpoint, weights.networks["student"], path) if has_moments else None,
        config=vars(args) if isinstance(args, Namespace) else None,
    )


def read_weights(
    content: Mapping[str, Any], path: str, *, form: str, backbone: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Read the networks in a file of any code, with released or timm's names, with or without heads.

    Args:
        content: weights by name, in dicts of any depth and under any prefixes (`unwrap`).
        path: for messages.
        form: what to call this format.
        backbone: spec of the backbone that the weights are for, where they may not tell it.

    Raises:
        ValueError: the family of the backbone is not known, or nothing says which of several is meant.
    """
    flat = flattened(content)
    networks: dict[str, State] = {}
    places = _of_given(flat, backbone) if backbone is not None and backbone["name"] not in FAMILIES else []
    if places:
        assert backbone is not None
        found = roles(places, path)
        for role, prefix in found.items():
            state, spec = _timm(within(flat, prefix, places), backbone)
            networks[role] = under("backbone.model.", state) | _heads(flat, prefix)
        inferred = Inferred(spec, ("drop_path_rate", "pool", "in_chans"))
    else:
        places = [prefix for prefix in before(flat, FIRST_WEIGHTS) if recognised(unchunked(part(flat, prefix)))]
        if not places and backbone is not None:
            places = _of_given(flat, backbone)
        if not places:
            raise ValueError(_strange(path, flat, backbone))
        found = roles(places, path)
        for role, prefix in found.items():
            networks[role], inferred = _network(within(flat, prefix, places), flat, prefix, path, backbone)
    left = _left_out(flat, found.values(), networks)
    return Checkpoint(path, form, inferred.spec, networks, guessed=inferred.guessed, left_out=tuple(left))


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
    with replacing(path) as draft, draft.open("wb") as file:
        torch.save(to_released(source), file)


# -- names


def _network(
    backbone: State, flat: State, prefix: str, path: str, given: Mapping[str, Any] | None
) -> tuple[State, Inferred]:
    """One network's weights under our names, and the spec of its backbone."""
    state = {name: value for name, value in unchunked(backbone).items() if name == MASK or not has_no_part(name)}
    inferred = infer_spec(state)
    if inferred is None:  # our own names of a family whose released names are others
        assert given is not None
        return under("backbone.", state), Inferred(dict(given))
    family = inferred.spec["name"]
    if family in _BACKBONES:
        is_timm_swin = family == "swin" and not any(name.startswith("layers.0.downsample.") for name in state)
        network = under("backbone.", state if is_timm_swin else _BACKBONES[family][0](state))
    else:
        network = under("backbone.model.", timm_names.of_vit(state, inferred.spec) if "pos_embed" in state else state)
    return network | _heads(flat, prefix), inferred


def _heads(flat: State, prefix: str) -> State:
    """The heads beside or inside a backbone, as the release writes them. DINO keeps them apart from the backbone."""
    found: State = {}
    for released, ours in HEADS.items():
        head = part(flat, f"{prefix.removesuffix('backbone.')}{released}.")
        if any(name.startswith(("mlp.", "last_layer.")) for name in head):  # and no classifier
            found |= under(f"heads.{ours}.", {_to_head(name): value for name, value in head.items()})
    return found


def _left_out(flat: State, places: Collection[str], networks: Mapping[str, State]) -> list[str]:
    """Weights of heads and of anything else beside the backbones."""
    taken = {id(value) for state in networks.values() for name, value in state.items() if name.startswith("heads.")}
    left = []
    for name, value in flat.items():
        behind = [name.removeprefix(prefix) for prefix in places if name.startswith(prefix)]
        if is_weight(name) and id(value) not in taken and (not behind or has_no_part(min(behind, key=len))):
            left.append(name)
    return left


def _of_given(flat: State, given: Mapping[str, Any]) -> list[str]:
    """Prefixes of the weights that a given backbone has, more than half of them."""
    is_timm = given["name"] not in FAMILIES
    wanted = {name for name, value in _meta(given).state_dict().items() if value.ndim}
    fitting = []
    for prefix in prefixes(flat, len(wanted) / 2):
        state = part(flat, prefix)
        if is_timm:
            state = _timm(state, given)[0]
        if 2 * len(wanted & set(state)) > len(wanted):
            fitting.append(prefix)
    return innermost(fitting)


def _meta(spec: Mapping[str, Any]) -> nn.Module:
    """A backbone's own network without memory."""
    if spec["name"] not in FAMILIES:
        return timm_names.on_meta(spec, {})[1]
    with torch.device("meta"):
        return build(**spec)


def _timm(state: State, spec: Mapping[str, Any]) -> tuple[State, dict[str, Any]]:
    """Weights under timm's names, and the spec for the size of images that they were made for."""
    spec, made = timm_names.on_meta(spec, state)
    return timm_names.renamed(state, spec["name"], made), spec


def _strange(path: str, flat: State, given: Mapping[str, Any] | None) -> str:
    """The message about weights of no known family, with the timm model that they fit if there is one."""
    shown = ", ".join(list(flat)[:4])
    if given is not None:
        wanted = list(_meta(given).state_dict())
        lacks = [name for name in wanted if name not in flat]
        others = [name for name in flat if name not in wanted]
        return (
            f"{path} holds no weights of backbone={given['name']}: {len(lacks)} of the {len(wanted)} names that this "
            f"has are missing ({', '.join(lacks[:4])}, ...)"
            + (f"; the file has {', '.join(others[:4])}, ..." if others else "")
        )
    like = timm_names.like(flat)
    relatives = timm.list_models(f"{like}*") if like else []
    ones = ([name for name in relatives if re.search("tiny|small|base|b0|50", name)] or relatives)[:4]
    way = (
        f"They look like those of timm's {', '.join(ones)}, ...: give the right one, backbone=timm backbone.name=NAME"
        if ones
        else "Those of any timm model are read with backbone=timm backbone.name=NAME, from a folder that timm wrote, "
        "or by the model's name"
    )
    return (
        f"{path} holds weights whose names belong to no known backbone ({shown}, ...). Known are Swin, CvT and ViL "
        f"of the released EsViT, ViT and ResNet. {way}"
    )


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


def _moments(checkpoint: Mapping[str, Any], renamed: State, path: str) -> Moments:
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
    known = tuple(ours[student[name].data_ptr()] for name in names if student[name].numel())
    return Moments(_optimizer_name(groups[0]), of, known)


def _optimizer_name(group: Mapping[str, Any]) -> str:
    if "betas" in group:
        return "adamw"
    return "lars" if "eta" in group else "sgd"


def _optimizer(moments: Moments, ours: State, released: State) -> dict[str, Any]:
    """The released optimizer's ``state_dict()``.

    Learning rate and decay in it are torch's defaults; the release sets both before every step.
    """
    names = {value.data_ptr(): name for name, value in ours.items() if value.numel()}
    has = None if moments.parameters is None else set(moments.parameters)  # not of gains that are held at 1
    order = [n for n in optimizer_order(released) if has is None or names[released[n].data_ptr()] in has]
    decaying = sum(released[name].ndim > 1 and not name.endswith(".bias") for name in order)
    groups = [{"params": [released[n] for n in order[:decaying]]}, {"params": [released[n] for n in order[decaying:]]}]
    groups[1]["weight_decay"] = 0.0  # type: ignore[assignment]
    made = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[moments.name](groups)
    states = [moments.of.get(names[released[name].data_ptr()], {}) for name in order]
    state = {place: state for place, state in enumerate(states) if state}
    return {"state": state, "param_groups": made.state_dict()["param_groups"]}
