"""EsViT: efficient self-supervised vision transformers for representation learning (arXiv 2106.09785).

The front door is for guests: it names what most people need and loads it when it is first used, so that
``import esvit_pl`` costs milliseconds and loads no torch. Code of this package imports from the rooms themselves.

The list of public names is ``__init__.pyi``. Editors and type checkers read it, and so does this file.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

_imports = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
_HOMES = {alias.name: str(node.module) for node in _imports if isinstance(node, ast.ImportFrom) for alias in node.names}
"""Public name -> the module that holds it; a room's name -> this package."""

__all__ = ["__version__", *(name for name, home in _HOMES.items() if home != __name__)]  # pyright: ignore


def __getattr__(name: str) -> object:
    """Load `name` when it is first used (PEP 562), and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__dir__())}")
    home = _HOMES[name]
    value = import_module(f"{__name__}.{name}") if home == __name__ else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({"__version__", *_HOMES})
