"""Which file is meant by a path to a checkpoint: a run folder means its last one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from esvit_pl.printing import say_once
from esvit_pl.whole import damage

WEIGHTS = (".ckpt", ".pth", ".pt", ".safetensors", ".bin", ".tar")
"""How files of weights end. Only the first is what a training of ours writes."""
SHOWN = 5
"""How many names a message lists."""
_DEPTH, _FOLDERS = 5, 3000  # how far a message looks for checkpoints below a folder


def last_checkpoint(path: str | Path) -> Path:
    """The file that a path means.

    Args:
        path: a file, the folder of a run, or its folder ``checkpoints``. A folder means its ``last.ckpt``, and without
            that the ``.ckpt`` that was written last. Files that are damaged are passed over, with a line.

    Raises:
        ValueError: there is no such file, or the folder holds no checkpoint; the message says what is there.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(missing(path))
    for folder in (path, path / "checkpoints"):
        files = sorted((file for file in folder.glob("*.ckpt") if file.is_file()), key=_age)
        for file in files:
            wrong = damage(file)
            if wrong is None:
                return file
            say_once(f"passed over: {file} {wrong}")
        if files:
            raise ValueError(f"{path} holds no checkpoint that is whole: {files[0]} {damage(files[0])}")
    raise ValueError(f"{path} {_no_checkpoint(path)}")


def _age(file: Path) -> tuple[bool, int, str]:
    """Sorts ``last.ckpt`` first, and then the newest."""
    return not re.fullmatch(r"last(-v\d+)?", file.stem), -file.stat().st_mtime_ns, file.name


def missing(path: Path) -> str:
    """A sentence about a path that is neither a file nor a folder, with what is there instead."""
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {os.readlink(path)}, which does not exist"
    if path.exists():
        return f"{path} is neither a file nor a folder"
    parts = [part for part in (path, *path.parents) if not part.exists()]
    there, wanted = parts[-1].parent, parts[-1].name
    if there.is_file():
        return f"{path} does not exist: {there} is a file"
    names = sorted(entry.name for entry in there.iterdir()) if os.access(there, os.R_OK) else []
    near = get_close_matches(wanted, names, n=3, cutoff=0.6)
    near += [name for name in names if Path(name).suffix in WEIGHTS and name not in near]
    place = "this folder" if there == Path() else str(there)
    has = f"it has {listed(near)}" if near else f"it holds {listed(names)}" if names else "it is empty"
    return f"{path} does not exist: {place} has no {wanted}; {has}"


def listed(names: Sequence[str]) -> str:
    """The first few names of a list, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _no_checkpoint(folder: Path) -> str:
    """What a folder without a checkpoint is."""
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "is an empty folder"
    if "snapshots" in names and "blobs" in names:
        inside = [str(folder / "snapshots" / entry.name) for entry in sorted((folder / "snapshots").iterdir())]
        return f"is a cache of the Hugging Face Hub; give the copy inside, {listed(inside) or 'which is not there yet'}"
    runs = list(_runs_below(folder))
    if runs:
        return f"holds no checkpoint itself, and several runs may lie below; give one of {listed(runs)}"
    files = [str(folder / name) for name in names if Path(name).suffix in WEIGHTS]
    if files:
        return f"is no folder of a run; it holds weights, so give the file: {listed(files)}"
    config = folder / "config.yaml"
    if config.is_file():
        measured = re.search(r"^ckpt_path: (.+)$", config.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if measured and measured[1] != "null":
            return f"is a run without checkpoints, which measured or went on with {measured[1]}"
        return "is a run without checkpoints: it ended before it saved one, or callbacks.checkpoint was left out"
    return (
        "holds neither a checkpoint (*.ckpt) nor what timm writes (config.json and model.safetensors); it holds "
        f"{listed(names)}"
    )


def _runs_below(folder: Path) -> Iterator[str]:
    """Folders below that `last_checkpoint` takes."""
    for seen, (place, folders, files) in enumerate(os.walk(folder)):
        deep = len(Path(place).relative_to(folder).parts) >= _DEPTH
        folders[:] = [] if deep or seen > _FOLDERS else sorted(name for name in folders if name[:1] != ".")
        if any(name.endswith(".ckpt") for name in files):
            here = Path(place)
            yield str(here.parent if here.name == "checkpoints" else here)
