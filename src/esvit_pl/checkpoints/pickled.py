"""Read files of ``torch.save`` without running what may be in them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from esvit_pl.whole import damage


def read_pickled(path: str | Path, *, tensors: bool = True) -> Any:
    """Read tensors and plain Python from a file that ``torch.save`` wrote, without calling anything in it.

    Besides, only ``argparse.Namespace`` is allowed, which holds the settings in released checkpoints.

    Args:
        tensors: False leaves their bytes in the file, for a quick look at the rest; use none of them then.

    Raises:
        ValueError: the file holds anything else (the message names it), or it is damaged.
    """
    if tensors and (wrong := damage(Path(path))):
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it {wrong}. Take another one, or copy or download it again"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=None if tensors else True)
    except Exception as error:  # torch raises OSError, EOFError, KeyError or UnpicklingError, by the damage
        names = _offending(path, str(error))
        if not names:
            first = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            if not isinstance(error, OSError) and "too old" not in first:  # torch advises to run what is in the file
                first = "torch.save did not write it, or it is damaged; download it again, or save the weights anew"
            raise ValueError(f"{path} cannot be read as a checkpoint: {first}") from error
        raise ValueError(
            f"{path} is refused: beside weights it holds {', '.join(names)}, which would run when it is loaded. "
            "Nothing of it was run. If you trust whoever made it, ask them to save the weights alone, as safetensors"
        ) from error


def _offending(path: str | Path, message: str) -> list[str]:
    """Names of what the file would call, found without calling anything."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # an old format, or damaged: torch's own message says it
        names = re.findall(r"GLOBAL ([\w.]+\.\w+)", message)
    return sorted({name for name in names if name != "argparse.Namespace"})
