"""The plain dict from which a part of a training can be made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def spec_of(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The `spec` of a backbone or an objective: its name, and what its ``__init__`` was called with.

    Args:
        name: of the family or method.
        arguments: ``locals()`` at the beginning of ``__init__``. Sequences become lists, as a checkpoint wants them.

    >>> class Part:
    ...     def __init__(self, *, width=8, depths=(2, 2)):
    ...         self.spec = spec_of("part", locals())
    >>> Part(width=4).spec
    {'name': 'part', 'width': 4, 'depths': [2, 2]}
    """
    given = {key: value for key, value in arguments.items() if key not in ("self", "__class__")}
    return {"name": name, **{key: _plain(value) for key, value in given.items()}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
