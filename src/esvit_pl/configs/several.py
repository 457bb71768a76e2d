"""Settings that take one value, several, or several with names: ``ckpt_path=A``, ``[A,B]``, ``{before:A,after:B}``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig


def listed(value: Any) -> list[str]:
    """A text alone, or several."""
    return [str(item) for item in value] if isinstance(value, ListConfig) else [str(value)]


def named(value: Any) -> dict[str, Any]:
    """``{NAME:A}``, ``[A,B]`` or ``A`` as {title: value}; without names, the shortest ends of paths that differ."""
    if isinstance(value, DictConfig):
        return {str(title): item for title, item in value.items()}
    paths = listed(value)
    parts = [
        [part for part in Path(path).parts if part not in ("checkpoints", "last.ckpt")] or [path] for path in paths
    ]
    depth = next((n for n in range(1, 9) if len({tuple(each[-n:]) for each in parts}) == len(set(paths))), 9)
    return {"/".join(each[-depth:]): path for each, path in zip(parts, paths, strict=True)}
