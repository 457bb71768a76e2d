"""Our own training checkpoints: what they say of themselves, and how parts are built from them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from esvit_pl.backbones import Backbone, build
from esvit_pl.objectives.interface import Objective

FORMAT = 1


def describe(backbone: Backbone, objective: Objective, config: dict[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint holds under ``esvit_pl``: plain Python only, so that ``weights_only=True`` reads it."""
    return {"format": FORMAT, "backbone": dict(backbone.spec), "loss": dict(objective.spec), "config": config}


def load_training_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of `Pretrainer`, safely.

    Raises:
        ValueError: no such file, not readable as a checkpoint, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"ckpt_path={path} is no file; give the path of a checkpoint, such as RUN/checkpoints/last.ckpt"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises OSError, EOFError, KeyError or UnpicklingError, by the damage
        raise ValueError(f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(checkpoint, dict) or "esvit_pl" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of esvit-pretrain: it has no entry 'esvit_pl'")
    return checkpoint


def load_backbone(path: str | Path, *, network: Literal["teacher", "student"] = "teacher") -> Backbone:
    """The pretrained backbone of a checkpoint, in eval mode and without gradients.

    Args:
        path: a checkpoint of `Pretrainer`.
        network: whose backbone; the teacher's is the one that the release evaluates.
    """
    checkpoint = load_training_checkpoint(path)
    backbone = build(**checkpoint["esvit_pl"]["backbone"])
    prefix = f"{network}.backbone."
    state = {
        key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)
    }
    if not state:
        raise ValueError(f"{path} holds no {network} backbone; its networks are {_networks(checkpoint)}")
    backbone.load_state_dict(state)
    return backbone.eval().requires_grad_(False)


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
            + "\n  resume with the settings of the checkpoint, or start anew without ckpt_path"
        )


def _networks(checkpoint: dict[str, Any]) -> list[str]:
    return sorted({key.split(".")[0] for key in checkpoint["state_dict"] if ".backbone." in key})
