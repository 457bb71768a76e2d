"""A backbone as one safetensors file: weights under our names, and a description of the backbone in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor

from esvit_pl.augment import Recipe
from esvit_pl.backbones import Backbone
from esvit_pl.checkpoints.shareable import shareable_spec
from esvit_pl.whole import replacing

FORMAT = 1
KEY, CHECKSUM, PREPARATION = "esvit_pl", "esvit_pl_sha256", "preparation"


def description(backbone: Backbone, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What our files say of a backbone, in plain Python: format, backbone (its spec), augment (its recipe) and about.

    Args:
        backbone: the recipe is that of its `transform`, if it has one.
        about: anything else to write down about the weights, fit for JSON.
    """
    recipe = recipe_of(backbone)
    return {
        "format": FORMAT,
        "backbone": shareable_spec(backbone.spec),
        "augment": None if recipe is None else asdict(recipe),
        "about": dict(about or {}),
    }


def recipe_of(backbone: Backbone) -> Recipe | None:
    """The recipe by which images are prepared for a backbone; None if its `transform` has none."""
    return getattr(backbone.transform, "recipe", None)


def preparation(recipe: Recipe, size: int | None = None) -> dict[str, Any]:
    """How an image becomes the input of a backbone, in the order in which it is done, as plain Python.

    Args:
        recipe: of the backbone.
        size: another side of the input in pixels; the resize changes with it.

    >>> preparation(Recipe(), size=112)["resize"]
    {'shorter_side': 128, 'interpolation': 'bicubic'}
    """
    crop = recipe.eval_crop if size is None else size
    side = round(recipe.eval_resize * crop / recipe.eval_crop)
    sides = "both_sides" if recipe.eval_squash else "shorter_side"
    return {
        "resize": {sides: side, "interpolation": recipe.eval_interpolation},
        "center_crop": crop,
        "divide_by": 255,
        "mean": list(recipe.mean),
        "std": list(recipe.std),
    }


def save(backbone: Backbone, path: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
    """Write the backbone's weights bit for bit; ``esvit_pl.load_backbone(path)`` builds the model again.

    The metadata hold `description`, and `preparation` for other programs.

    Args:
        backbone: any.
        path: of the file; its folder is made.
        about: as in `description`.
    """
    recipe = recipe_of(backbone)
    prepared = {} if recipe is None else {PREPARATION: json.dumps(preparation(recipe))}
    write(backbone.state_dict(), Path(path), {KEY: json.dumps(description(backbone, about)), **prepared})


def write(state: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file with the usual permissions; the library's own function lets only the owner read it.

    Its metadata get a checksum of weights and metadata, which `read` compares.
    """
    weights = separate(state)
    with replacing(path) as draft:
        draft.write_bytes(as_bytes(weights, metadata={**metadata, CHECKSUM: checksum(weights, metadata)}))


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The weights under the names of the file, and its `description`; None for the latter if others wrote the file.

    Raises:
        ValueError: there is no such file, it is not a safetensors file, or it is of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a safetensors file: {error}") from error
    said, written = metadata.get(KEY), metadata.pop(CHECKSUM, None)
    if written is not None and written != checksum(weights, metadata):
        raise ValueError(f"{path} is damaged: it is not what was written; copy it or convert the checkpoint again")
    return weights, None if said is None else known(parsed(said, path), path)


def parsed(text: str, path: Path) -> Any:
    """The JSON of a description.

    Raises:
        ValueError: it is none, or nested so deeply that Python cannot read it.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its description cannot be read as JSON: {str(error)[:200]}") from error


def known(said: Any, path: Path) -> dict[str, Any]:
    """Return a description if it has the parts of one, and is of no newer format than this version reads.

    Raises:
        ValueError: it does not have them, or is newer.
    """
    if not isinstance(said, dict) or not isinstance(said.get("format", 0), int):
        raise ValueError(f"{path}: its description must be a group of settings, with a whole number as its format")
    if said.get("format", 0) > FORMAT:
        raise ValueError(
            f"{path} is of format {said['format']}, and this version of esvit_pl reads up to {FORMAT}; "
            "a newer esvit_pl reads it"
        )
    spec = said.get("backbone")
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise ValueError(f"{path}: backbone in its description must be a group of settings with a name")
    about = said.setdefault("about", {})
    if not isinstance(about, dict) or not isinstance(about.get("config") or {}, dict):
        raise ValueError(f"{path}: about and about.config in its description must be groups of settings")
    return said


def checksum(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, types, shapes and bytes of the weights, and of the metadata."""
    digest = sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give each weight its own memory, as the file format demands.

    ViL's shared projections are one tensor under two names; the file holds it under both.
    """
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
