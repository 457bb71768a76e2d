"""Settings of a part of a training as plain Python, fit for a checkpoint and for a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def spec_of(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The `spec` of a backbone or an objective, from which it can be made again: its name and its arguments.

    Args:
        name: of the family or method.
        arguments: ``locals()`` at the beginning of ``__init__``.

    >>> class Part:
    ...     def __init__(self, *, width=8, depths=(2, 2)):
    ...         self.spec = spec_of("part", locals())
    >>> Part(width=4).spec
    {'name': 'part', 'width': 4, 'depths': [2, 2]}
    """
    given = {key: value for key, value in arguments.items() if key not in ("self", "__class__")}
    return {"name": name, **plain(given)}


def plain(value: Any) -> Any:
    """Lists in place of tuples, at any depth.

    >>> plain({"lr": 0.1, "sizes": ((2, 3), "a")})
    {'lr': 0.1, 'sizes': [[2, 3], 'a']}
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
