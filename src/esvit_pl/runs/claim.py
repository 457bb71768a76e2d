"""The right to write a run into a folder: no other run lies there, and no other process writes there. No torch."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from esvit_pl.evaluation.names import TITLES
from esvit_pl.runs.lock import FolderLock, is_dead, read_lock
from esvit_pl.runs.reading import Run, find_runs, read_overrides, read_run

# What a run of ours writes, as patterns of paths in its folder. The jobs of a sweep lie in folders 0, 1, ..., those of
# `esvit_pl.evaluate` in knn, linear, ..., and those of evaluators of one's own in own_NAME.
OWN_PROBE = "own_"
_JOBS = "|".join([r"\d+", *TITLES, rf"{OWN_PROBE}\w+"])
_FILES = re.compile(
    rf"""(({_JOBS})/)?(
        (config|environment|results)(\.\d+)?\.(yaml|json)
      | (checkpoints/)?\.[^/]+\.(ckpt|json)\.tmp
      | metrics(\.\d+)?\.csv
      | bad_images(_\d+)?\.csv
      | learning_curve\.png
      | report\.html
      | figures/(crops|learning_curve|comparison|neighbou?rs|attention|correspondence|pca)\.png
      | figures/(.+/)?step_\d{{6}}\.png
      | checkpoints(\.\d+)?/(last|previous|epoch_\d+|epoch=\d+-step=\d+|step_\d+)(-v\d+)?\.ckpt
      | \.hydra(\.\d+)?/(config|hydra|overrides)\.yaml
      | tensorboard/(events\.out\.tfevents\..+|hparams\.yaml)
    )|sweep\.csv|sweep\.png|multirun\.yaml""",
    re.VERBOSE,
)
_LOGS = re.compile(rf"(({_JOBS})/)?(pretrain|knn|linear|train_ddp_process_\d+)\.log")
_BEFORE_THE_FIRST_STEP = {"config.yaml", "environment.json", "results.json", "figures/crops.png"}
_NOTES = re.compile(r"\.hydra/.*")  # of Hydra, written before a run begins
# Settings that another start of the same training does not repeat.
_OF_ONE_START = (
    "ckpt_path",
    "out",
    "overwrite",
    "resume",
    "resume.allow",
    "resume.mode",
    "resume_from",
    "paths.output_dir",
    "init_from",
)

_held: dict[Path, Claim] = {}
"""The folders that this process writes into."""


class FolderTaken(ValueError):
    """The folder holds a run."""


class Claim:
    """A folder that this process may write a run into until `release`.

    Args:
        folder: of the run.
        goes_on: the run that lies there is to go on.
        overwrite: a run that lies there is to be replaced; its files stay until `clear`.
        notes: whether Hydra has written its notes there a moment ago.

    Attributes:
        line: what the user should know: a lock was taken over from a process that was killed. Or None.
        note: called when the run begins, to write down with which words it was started. Or None.

    Raises:
        FolderTaken: the folder holds a run, and neither `goes_on` nor `overwrite` is set. Nothing was changed.
        FolderInUse: another process writes there.
        ValueError: the folder is a file, or it cannot be written.

    >>> claim = Claim("logs/a_run")
    >>> claim.clear()  # paths that were removed: none, since overwrite is not set
    []
    >>> claim.release()
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, goes_on: bool = False, overwrite: bool = False, notes: bool = False
    ) -> None:
        self.folder, self.overwrite = Path(folder), overwrite
        self.note: Callable[[Path], None] | None = None
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; a run needs a folder")
        may = goes_on or overwrite
        self._refuse_run(may, notes)
        is_new = not self.folder.exists()
        self._lock = FolderLock(self.folder)
        try:
            self.line = self._lock.take()
        except OSError as error:
            with suppress(OSError):
                if is_new:
                    self.folder.rmdir()
            reason = error.strerror or error
            raise ValueError(f"cannot write into {self.folder} ({reason}); give another folder with out=") from error
        self._is_new = is_new
        _held[self.folder.resolve()] = self
        try:
            self._refuse_run(may, notes)  # another may have begun and ended meanwhile
        except BaseException:  # the folder is taken, or a signal came
            self.release()
            raise

    def clear(self) -> list[Path]:
        """With `overwrite`: remove the files that an earlier run has written, and no others."""
        removed = files_of_a_run(self.folder) if self.overwrite else []
        for path in removed:
            path.unlink()
        for path in _logs(self.folder) if removed else []:
            os.truncate(path, 0)  # Hydra has opened it for the new run
        for parent in sorted({parent for path in removed for parent in path.parents if parent != self.folder})[::-1]:
            with suppress(OSError):  # a file of somebody else is in it
                if self.folder in parent.parents:
                    parent.rmdir()
        self.overwrite = False
        return removed

    def release(self) -> None:
        """Let other processes write there. A folder that was made for this claim and stayed empty is removed."""
        self._lock.release()
        _held.pop(self.folder.resolve(), None)
        with suppress(OSError):
            if self._is_new:
                self.folder.rmdir()

    def _refuse_run(self, may: bool, notes: bool) -> None:
        if not may and holds_run(self.folder, notes=not notes):
            raise FolderTaken(_refusal(self.folder))


def claimed(folder: str | os.PathLike[str]) -> Claim | None:
    """The claim that this process has on a folder."""
    return _held.get(Path(folder).resolve())


def run_of(checkpoint: str | os.PathLike[str] | None) -> Path | None:
    """The folder of the run that keeps this checkpoint, or that is this folder; None for any other file.

    Checkpoints that were set aside (``checkpoints.1/``) do not count: the run has gone on without them.
    """
    if checkpoint is None:
        return None
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        folder = path.parent if path.name == "checkpoints" else path
        return folder if _is_run(folder) else None
    if not is_training_checkpoint(path) or re.fullmatch(r"checkpoints\.\d+", path.parent.name):
        return None
    return next((folder for folder in list(path.parents)[:3] if _is_run(folder)), None)


def is_training_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of esvit-pretrain, from a look at its table of contents; torch is not loaded."""
    if not path.is_file():  # whoever opens a named pipe waits for a writer
        return False
    try:
        with ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            content = archive.read(names[0]) if names else b""
    except (OSError, BadZipFile):
        return False
    return b"esvit_pl" in content and b"loops" in content


def _is_run(folder: Path) -> bool:
    return (folder / "results.json").is_file() or (folder / ".hydra" / "overrides.yaml").is_file()


def files_of_a_run(folder: str | os.PathLike[str]) -> list[Path]:
    """The files in a folder that a run, an evaluation or a sweep of ours writes, known by their names."""
    return [path for path in _files(Path(folder)) if _FILES.fullmatch(path.relative_to(folder).as_posix())]


def holds_run(folder: str | os.PathLike[str], *, notes: bool = True) -> bool:
    """Whether a run, an evaluation or a sweep has written into the folder.

    A run that failed before its first step, for a wrong setting say, does not count.

    Args:
        notes: whether Hydra's notes alone count.
    """
    names = {path.relative_to(folder).as_posix() for path in files_of_a_run(folder)}
    work = {name for name in names if not _NOTES.fullmatch(name)}
    if "results.json" in work and work <= _BEFORE_THE_FIRST_STEP:
        return read_run(folder).status != "failed"
    return bool(work) or (notes and bool(names))


def files_before_the_first_step(folder: str | os.PathLike[str], log: str, *, notes: bool = False) -> list[Path]:
    """The files that a run has left which failed before its first step; none if a run has come further there.

    Args:
        log: the name of its log.
        notes: take Hydra's notes and the log alone, and nothing from a folder that holds any other file.
    """
    folder, found = Path(folder), []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if _NOTES.fullmatch(name) or name == log or (name in _BEFORE_THE_FIRST_STEP and not notes):
            found.append(path)
        elif notes or _FILES.fullmatch(name):
            return []
    return found


def resume_command(folder: str | os.PathLike[str]) -> str | None:
    """The command line that goes on with the run in a folder; None if it has kept no checkpoint."""
    words = resume_words(folder)
    return None if words is None else shlex.join(words)


def resume_words(folder: str | os.PathLike[str]) -> list[str] | None:
    """The words of that command line, as they were typed: secrets, too."""
    folder = Path(folder)
    checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        return None
    last = folder / "checkpoints" / "last.ckpt"
    checkpoint = last if last in checkpoints else checkpoints[-1]
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    is_probe = "\nresume_from:" in text
    probe = "esvit-finetune" if ".FineTuning\n" in text else "esvit-linear"
    program, key = (probe, "resume_from") if is_probe else ("esvit-pretrain", "ckpt_path")
    own = _OF_ONE_START[1:] if is_probe else _OF_ONE_START
    words = [word for word in read_overrides(folder) if word.lstrip("+~").partition("=")[0] not in own]
    return [program, *words, f"{key}={checkpoint}"]


def _refusal(folder: Path) -> str:
    command = resume_command(folder)
    go_on = f"\n  go on with it    {command}" if command else ""
    return (
        f"{folder} already holds {_in_words(folder)}; nothing in it was changed. Give another folder, or{go_on}\n"
        "  replace it       overwrite=true removes the files of that run, and no others"
    )


def _in_words(folder: Path) -> str:
    owner = read_lock(folder)
    if owner is not None and not is_dead(owner):
        return f"a run (process {owner['pid']} on {owner['host']} writes into it)"
    if (folder / "results.json").is_file() or (folder / ".hydra").is_dir():
        run = read_run(folder)
        return f"a run ({_status(run)})"
    runs = len(find_runs(folder))
    return f"{runs} runs" if runs > 1 else "a run"


def _status(run: Run) -> str:
    status = {**dict.fromkeys(("running", "killed", "silent"), "not finished"), "no results": "without results"}
    reached = f" after {run.steps} steps" if run.steps else ""
    return status.get(run.status, run.status) + reached


def _logs(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if _LOGS.fullmatch(path.relative_to(folder).as_posix())]


def _files(folder: Path) -> Iterator[Path]:
    """Files in those places where a run writes; a folder may hold a million others."""
    for top in [folder, *_folders(folder, _JOBS)]:
        if top.is_dir():
            yield from (path for path in top.iterdir() if path.is_file())
            for inner in _folders(top, r"(\.hydra|checkpoints|figures|tensorboard)(\.\d+)?"):
                yield from (Path(path) / name for path, _, names in os.walk(inner) for name in names)


def _folders(top: Path, pattern: str) -> list[Path]:
    if not top.is_dir():
        return []
    return [path for path in top.iterdir() if re.fullmatch(pattern, path.name) and path.is_dir()]
