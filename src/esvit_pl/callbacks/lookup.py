"""How a callback finds the network that it is told to look at, in a module that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import nn

Part = str | Callable[..., Any]
"""A dotted attribute path in the module, or the function itself."""


def find_part(owner: str, module: nn.Module, part: Part, *, argument: str = "features") -> Callable[..., Any]:
    """The callable that `part` names.

    Args:
        owner: who asks, for the message.
        module: where a path starts.
        part: e.g. ``"encoder"`` or ``"net.trunk"``; a callable is given back as it is.
        argument: the name under which `owner` was given it.

    Raises:
        ValueError: there is no such attribute, or it cannot be called; says where the path ends and what is there.
    """
    if not isinstance(part, str):
        return part
    found: Any = module
    for depth, name in enumerate(part.split(".")):
        if not hasattr(found, name):
            where = ".".join([type(module).__name__, *part.split(".")[:depth]])
            raise ValueError(
                f"{owner} looks for {argument}={part!r}, and {where} has no attribute {name!r}; it has "
                f"{', '.join(_parts_of(found)) or 'no parts'}. Give the path of a network, or a function of images"
            )
        found = getattr(found, name)
    if not callable(found):
        raise ValueError(
            f"{owner} needs a network at {argument}={part!r}, found {type(found).__name__}, which cannot be called"
        )
    return cast(Callable[..., Any], found)


def named_parts(owner: str, features: Part | Mapping[str, Part]) -> dict[str | None, Part]:
    """{name: part}, the main one first; a single part has no name."""
    named: dict[str | None, Part] = dict(features.items()) if isinstance(features, Mapping) else {None: features}
    if not named:
        raise ValueError(f"{owner} needs one feature or more, got an empty dict")
    return named


def _parts_of(found: Any) -> list[str]:
    if isinstance(found, nn.Module):
        return [name for name, _ in found.named_children()]
    return sorted(name for name in vars(found) if not name.startswith("_")) if hasattr(found, "__dict__") else []
