"""Checkpoints of `Pretrainer`: what they hold beside Lightning's own entries, and how they are read again.

Under ``esvit_pl`` they hold plain Python: `format`, `backbone` and `loss` (specs), `config`, `parameters` (names in
the optimizer's order), and `augment` (how images were prepared). Format 1 had neither of the last two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from esvit_pl.augment import Recipe
from esvit_pl.backbones import Backbone
from esvit_pl.checkpoints.checkpoint import Checkpoint, Moments, State, part
from esvit_pl.checkpoints.load_weights import misfits
from esvit_pl.checkpoints.optimizer_order import optimizer_order
from esvit_pl.checkpoints.pickled import read_pickled
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives.interface import Objective
from esvit_pl.optim import parameter_names
from esvit_pl.specs import plain

FORMAT = 2


def describe(
    student: MultiCropNetwork,
    objective: Objective,
    config: dict[str, Any] | None,
    transform: object = None,
    optimizer: Optimizer | None = None,
) -> dict[str, Any]:
    """What a checkpoint holds under ``esvit_pl``: plain Python, so that ``weights_only=True`` reads it.

    Args:
        student: the network that learns.
        objective: what it learns.
        config: the run's config as plain Python, if there is one.
        transform: how images are prepared for the backbone; an `EvaluationTransform` is written down.
        optimizer: of the student's parameters.
    """
    recipe = getattr(transform, "recipe", None)
    return {
        "format": FORMAT,
        "backbone": dict(student.backbone.spec),
        "loss": dict(objective.spec),
        "config": config,
        "parameters": None if optimizer is None else parameter_names(optimizer, student),
        "augment": plain(asdict(recipe)) if isinstance(recipe, Recipe) else None,
    }


def steps_done(path: str | Path) -> int | None:
    """Optimizer steps that lie behind a checkpoint of `Pretrainer`; None for a file of another kind.

    Raises:
        ValueError: the file cannot be read.
    """
    content = read_pickled(path, tensors=False)
    return int(content["global_step"]) if is_ours(content) else None


def is_ours(checkpoint: object) -> bool:
    """Whether this is a checkpoint of `Pretrainer`."""
    return isinstance(checkpoint, dict) and "esvit_pl" in checkpoint


def read(checkpoint: dict[str, Any], path: str, *, moments: bool = False) -> Checkpoint:
    """Read a checkpoint of `Pretrainer`.

    Args:
        checkpoint: what `read_pickled` returns.
        path: for messages.
        moments: whether to read the optimizer, too.

    Raises:
        ValueError: a newer version of this library wrote it.
    """
    about, weights, loops = checkpoint["esvit_pl"], checkpoint["state_dict"], checkpoint.get("loops")
    if about["format"] > FORMAT:
        raise ValueError(
            f"{path} is of format {about['format']}, and this version of esvit_pl reads up to {FORMAT}; "
            "a newer esvit_pl reads it"
        )
    networks = {name: part(weights, f"{name}.") for name in ("student", "teacher")}
    return Checkpoint(
        path=path,
        format="esvit_pl",
        backbone=about["backbone"],
        networks={name: state for name, state in networks.items() if state},
        objective=part(weights, "objective."),
        epoch=None if loops is None else loops["fit_loop"]["epoch_progress"]["current"]["processed"],
        moments=_moments(checkpoint, networks["student"]) if moments else None,
        config=about.get("config"),
        recipe=_recipe(about),
    )


def check_same_architecture(
    checkpoint: dict[str, Any], backbone: Backbone, objective: Objective, state: dict[str, Tensor]
) -> None:
    """Refuse to resume from a checkpoint of another architecture.

    Args:
        checkpoint: what Lightning loads.
        backbone: the student's backbone in the training that resumes.
        objective: the objective of this training.
        state: the module's own ``state_dict()``.

    Raises:
        ValueError: the settings and weights that differ.
    """
    saved = checkpoint.get("esvit_pl")
    if saved is None:
        raise ValueError("the checkpoint to resume from does not come from esvit-pretrain: it has no entry 'esvit_pl'")
    problems = misfits(checkpoint["state_dict"], state)
    if problems:
        differences = [
            f"{group}.{key}: checkpoint {saved[group][key]!r}, now {now[key]!r}"
            for group, now in (("backbone", backbone.spec), ("loss", objective.spec))
            for key in sorted({*saved[group]} & {*now})
            if saved[group][key] != now[key] and key not in ("drop_path_rate", "init")
        ]
        raise ValueError(
            "the checkpoint to resume from was trained with another architecture.\n  settings: "
            + ("; ".join(differences) or "equal")
            + "\n  weights: "
            + "; ".join(problems)
            + "\n  resume with the settings of the checkpoint, or start a new training from its weights with init_from="
        )


def _recipe(about: dict[str, Any]) -> Recipe | None:
    if about["format"] > 1:
        return None if about["augment"] is None else Recipe(**about["augment"])
    augment = (about.get("config") or {}).get("augment") or {}
    known = augment.get("_target_") == "esvit_pl.augment.Recipe"
    return Recipe(**{name: value for name, value in augment.items() if name != "_target_"}) if known else None


def check_same_optimizer(checkpoint: dict[str, Any], name: str) -> None:
    """Refuse to resume with another optimizer, which would not find its moments in the checkpoint.

    Args:
        checkpoint: what Lightning loads.
        name: of this training's optimizer.

    Raises:
        ValueError: the checkpoint's optimizer is another one.
    """
    states = checkpoint.get("optimizer_states")
    if not states:
        raise ValueError(
            "the checkpoint to resume from holds weights and no state of an optimizer, so there is no training to go "
            "on with; init_from= in place of ckpt_path= starts a new training from its weights"
        )
    saved = optimizer_name(states[0]["param_groups"][0])
    if saved != name:
        raise ValueError(
            f"the checkpoint to resume from was trained with optimizer={saved}, and this training has optimizer={name};"
            f" resume with optimizer={saved}, or start a new training from its weights with init_from="
        )


def optimizer_name(group: Mapping[str, Any]) -> str:
    """ "adamw", "lars" or "sgd", from the settings of one of its parameter groups."""
    return "adamw" if "betas" in group else "lars" if "trust" in group else "sgd"


def _moments(checkpoint: dict[str, Any], student: State) -> Moments | None:
    """The optimizer's state, by names of the student's parameters; None if the file does not hold it."""
    about, states = checkpoint["esvit_pl"], checkpoint.get("optimizer_states")
    if not states:
        return None
    groups = states[0]["param_groups"]
    count = sum(len(group["params"]) for group in groups)
    try:
        order = about["parameters"] if about["format"] > 1 else optimizer_order(student, count)
    except ValueError:  # format 1, of a timm model some of whose parameters do not learn: nothing says which
        return None
    of = {order[place]: state for place, state in states[0]["state"].items()}
    return Moments(optimizer_name(groups[0]), of, tuple(order))
