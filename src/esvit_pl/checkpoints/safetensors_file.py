"""A backbone as one safetensors file: weights under our names, and in its metadata what they are the weights of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor

from esvit_pl.augment import Recipe
from esvit_pl.backbones import Backbone

FORMAT = 1
KEY = "esvit_pl"


def description(backbone: Backbone, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What our files say of a backbone, in plain Python: format, backbone (its spec), augment (its recipe) and about.

    Args:
        backbone: its `transform`, if it has one, tells the recipe.
        about: whatever else shall be known of the weights, fit for JSON.
    """
    recipe = recipe_of(backbone)
    return {
        "format": FORMAT,
        "backbone": dict(backbone.spec),
        "augment": None if recipe is None else asdict(recipe),
        "about": dict(about or {}),
    }


def recipe_of(backbone: Backbone) -> Recipe | None:
    """How images are prepared for a backbone, as far as its `transform` tells."""
    return getattr(backbone.transform, "recipe", None)


def save(backbone: Backbone, path: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
    """Write the backbone's weights bit for bit; ``esvit_pl.load_backbone(path)`` builds the model again.

    Args:
        backbone: any.
        path: of the file; its folder is made.
        about: as in `description`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(backbone.state_dict(), path, {KEY: json.dumps(description(backbone, about))})


def write(state: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file that others may read as they may any file; the library's own writing shuts them out."""
    path.write_bytes(as_bytes(separate(state), metadata=metadata))


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Weights under the names of the file, and its `description`; None for the latter in a file of others.

    Raises:
        ValueError: no such file, no safetensors file, or a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file; give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
            said = (file.metadata() or {}).get(KEY)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a safetensors file: {error}") from error
    return weights, None if said is None else known(json.loads(said), path)


def known(said: dict[str, Any], path: Path) -> dict[str, Any]:
    """`said` if it is of this version's format or an older one.

    Raises:
        ValueError: it is newer.
    """
    if said.get("format", 0) > FORMAT:
        raise ValueError(
            f"{path} is of format {said['format']}, and this version of esvit_pl reads up to {FORMAT}; "
            "a newer esvit_pl reads it"
        )
    return said


def separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with memory of their own, as the file format wants it.

    ViL's shared projections are one tensor under two names; readers that know one of them find it under theirs.
    """
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
