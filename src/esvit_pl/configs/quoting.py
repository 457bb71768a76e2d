"""Values in the grammar of Hydra's overrides, and paths of a command line that this grammar does not take.

Hydra reads ``runs/epoch=3.ckpt`` as a mistake, ``2024`` as a number and ``a,b`` as a sweep. In quotes each is a string.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

PATHS = (
    "ckpt_path",
    "init_from",
    "root",
    "out",
    "file",
    "dir",
    "dirpath",
    "output_dir",
    "log_dir",
    "save_dir",
    "image",
    "image2",
    "frames",
)
"""Last names of the settings whose value is a path."""
_KEY = re.compile(r"\+{0,2}[A-Za-z_][\w./@:-]*")


def quoted(text: str) -> str:
    """In quotes. Inside them Hydra only gives a meaning to the quote itself and to backslashes before it.

    >>> quoted("runs/epoch=3.ckpt")
    "'runs/epoch=3.ckpt'"
    """
    if "'" not in text and not text.endswith("\\"):
        return f"'{text}'"
    escaped = text.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}{chr(92) if escaped.endswith(chr(92)) else ''}'"


def quote_paths(words: Sequence[str]) -> list[str]:
    """Words of a command line, in quotes where Hydra would misread a path; ``~`` becomes the home folder.

    Quotes, sweeps, lists and interpolations of the user stay as they are, and so does everything that is no path.

    >>> quote_paths(["ckpt_path=runs/epoch=3.ckpt", "dataset.root=2024", "seed=1,2", "--multirun"])
    ["ckpt_path='runs/epoch=3.ckpt'", "dataset.root='2024'", 'seed=1,2', '--multirun']
    """
    sweeps = any(word in ("-m", "--multirun") or word.startswith("hydra.mode=") for word in words)
    return [_word(word, sweeps=sweeps) for word in words]


def _word(word: str, *, sweeps: bool) -> str:
    key, equals, value = word.partition("=")
    if not equals or not _KEY.fullmatch(key) or value in ("", "null", "???") or value[0] in "'\"":
        return word
    is_path, exists = key.lstrip("+").rpartition(".")[2] in PATHS, names_a_file(value)
    if is_path and value.startswith("~"):
        return f"{key}={quoted(str(Path(value).expanduser()))}"
    understood, read = _read(value)
    if understood and (read == value or not (is_path and (exists or isinstance(read, int | float)))):
        return word
    if sweeps and "," in value and not exists and is_path:
        return f"{key}={','.join(_word(f'{key}={part}', sweeps=False).partition('=')[2] for part in value.split(','))}"
    plain = "=" in value and not re.search(r"[,\[\](){}]", value)
    return f"{key}={quoted(value)}" if understood or is_path or exists or plain else word


def _read(value: str) -> tuple[bool, Any]:
    """Whether Hydra's grammar takes a value, and what it reads; None for a sweep."""
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return False, None
    return True, None if override.is_sweep_override() else override.value()


def names_a_file(value: str) -> bool:
    """Whether a file or folder of this name exists."""
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # too long a name; a null character
        return False
