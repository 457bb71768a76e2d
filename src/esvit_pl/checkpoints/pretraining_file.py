"""Our own training checkpoints: what they say of themselves, and how parts are built from them again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from esvit_pl.augment import Recipe
from esvit_pl.backbones import Backbone, build
from esvit_pl.checkpoints.checkpoint import Checkpoint, Moments, part
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives import EsViTObjective
from esvit_pl.objectives.interface import Objective
from esvit_pl.optim import parameter_groups

FORMAT = 1


def describe(backbone: Backbone, objective: Objective, config: dict[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint holds under ``esvit_pl``: plain Python only, so that ``weights_only=True`` reads it."""
    return {"format": FORMAT, "backbone": dict(backbone.spec), "loss": dict(objective.spec), "config": config}


def is_ours(checkpoint: object) -> bool:
    """Whether this is a checkpoint of `Pretrainer`."""
    return isinstance(checkpoint, dict) and "esvit_pl" in checkpoint


def read_training(checkpoint: dict[str, Any], path: str, *, moments: bool = False) -> Checkpoint:
    """A checkpoint of `Pretrainer`.

    Args:
        checkpoint: as `read_pickled` gives it.
        path: for messages.
        moments: read the optimizer, too.
    """
    about, weights = checkpoint["esvit_pl"], checkpoint["state_dict"]
    networks = {name: part(weights, f"{name}.") for name in ("student", "teacher")}
    centers = part(weights, "objective.centers.")
    augment = (about.get("config") or {}).get("augment") or {}
    known = augment.get("_target_") == "esvit_pl.augment.Recipe"
    return Checkpoint(
        path=path,
        format="esvit_pl",
        backbone=about["backbone"],
        networks={name: state for name, state in networks.items() if state},
        centers={name.removesuffix(".value"): value for name, value in centers.items() if name.endswith(".value")},
        epoch=checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"],
        moments=_moments(checkpoint) if moments else None,
        config=about.get("config"),
        recipe=Recipe(**{name: value for name, value in augment.items() if name != "_target_"}) if known else None,
    )


def check_same_architecture(
    checkpoint: dict[str, Any], backbone: Backbone, objective: Objective, state: dict[str, Tensor]
) -> None:
    """Refuse to resume from a checkpoint of another architecture, and say which settings and weights differ.

    Args:
        checkpoint: as Lightning loads it.
        backbone: the one that is to go on training.
        objective: the same.
        state: the module's own ``state_dict()``.
    """
    saved = checkpoint.get("esvit_pl")
    if saved is None:
        raise ValueError("the checkpoint to resume from is none of esvit-pretrain: it has no entry 'esvit_pl'")
    differences = [
        f"{group}.{key}: checkpoint {saved[group].get(key)!r}, now {now.get(key)!r}"
        for group, now in (("backbone", backbone.spec), ("loss", objective.spec))
        for key in sorted({*saved[group], *now})
        if saved[group].get(key) != now.get(key) and key not in ("drop_path_rate", "init")
    ]
    theirs = checkpoint["state_dict"]
    misfits = [f"{key} only in the checkpoint" for key in theirs if key not in state]
    misfits += [f"{key} only in the model" for key in state if key not in theirs]
    misfits += [
        f"{key}: checkpoint {tuple(theirs[key].shape)}, now {tuple(state[key].shape)}"
        for key in state
        if key in theirs and theirs[key].shape != state[key].shape
    ]
    if misfits:
        shown = misfits[:5] + ([f"and {len(misfits) - 5} more"] if len(misfits) > 5 else [])
        raise ValueError(
            "the checkpoint to resume from was trained with another architecture.\n  settings: "
            + ("; ".join(differences) or "equal")
            + "\n  weights: "
            + "; ".join(shown)
            + "\n  resume with the settings of the checkpoint, or start a new training from its weights with init_from="
        )


def _moments(checkpoint: dict[str, Any]) -> Moments | None:
    """The optimizer's state by name. Its names are those of a student built of the checkpoint's specs."""
    about = checkpoint["esvit_pl"]
    if about["loss"].get("name") != "esvit" or not checkpoint.get("optimizer_states"):
        return None
    with torch.device("meta"):
        backbone = build(**about["backbone"])
        objective = EsViTObjective(**{name: value for name, value in about["loss"].items() if name != "name"})
        student = MultiCropNetwork(backbone, objective.heads(backbone.width, backbone.region_width))
    names = {parameter: name for name, parameter in student.named_parameters()}
    order = [names[parameter] for group in parameter_groups(student) for parameter in group["params"]]
    saved = checkpoint["optimizer_states"][0]
    group = saved["param_groups"][0]
    name = "adamw" if "betas" in group else "lars" if "trust" in group else "sgd"
    return Moments(name, {order[place]: state for place, state in saved["state"].items()})
