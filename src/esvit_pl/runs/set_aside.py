"""What a run that goes on in its own folder keeps of its earlier part, under names with a number."""

from __future__ import annotations

import re
from pathlib import Path

from esvit_pl.checkpoints.pretraining_file import steps_done
from esvit_pl.loggers import cut_metrics

_KEPT = ("config.yaml", "environment.json", "results.json", ".hydra")


def set_aside(folder: Path, step: int) -> list[str]:
    """Prepare a run folder for going on after `step` optimizer steps.

    With the first free number n: ``config.yaml``, ``environment.json``, ``results.json`` and ``.hydra`` become
    ``config.n.yaml``, ...; rows of ``metrics.csv`` that were logged later move to ``metrics.n.csv``; checkpoints that
    were saved later move to ``checkpoints.n/``. Nothing is deleted.

    Returns:
        Lines that say what was moved, where anything was.
    """
    number = _free_number(folder)
    for name in _KEPT:
        if (folder / name).exists():
            (folder / name).rename(folder / _numbered(name, number))
    lines = []
    rows = cut_metrics(folder / "metrics.csv", step, aside=folder / f"metrics.{number}.csv")
    if rows:
        lines.append(f"rows of later steps are in metrics.{number}.csv now: {rows}")
    later = [path for path in sorted((folder / "checkpoints").glob("*.ckpt")) if _is_later(path, step)]
    for path in later:
        (folder / f"checkpoints.{number}").mkdir(exist_ok=True)
        path.rename(folder / f"checkpoints.{number}" / path.name)
    if later:
        names = ", ".join(path.name for path in later)
        lines.append(f"checkpoints of later steps are in checkpoints.{number}/ now: {names}")
    return lines


def _numbered(name: str, number: int) -> str:
    path = Path(name)
    return f"{path.stem}.{number}{path.suffix}"


def _free_number(folder: Path) -> int:
    pattern = r"(?:config|environment|results|metrics|checkpoints|\.hydra)\.(\d+)(?:\.\w+)?"
    taken = (re.fullmatch(pattern, path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in taken if match), default=0) + 1


def _is_later(path: Path, step: int) -> bool:
    try:
        done = steps_done(path)
    except ValueError:  # cut short by a kill
        return False
    return done is not None and done > step
