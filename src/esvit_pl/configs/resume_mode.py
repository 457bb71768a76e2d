"""``resume=auto``, ``must``, ``never``: whether a command goes on with the run in its folder. No torch."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs.processes import is_first_process
from esvit_pl.printing import say
from esvit_pl.runs.claim import run_of
from esvit_pl.runs.lock import slurm_starts

BY_NAME, AUTO, MUST, NEVER = "by_name", "auto", "must", "never"


def mode(config: DictConfig) -> str | None:
    """The ``resume=`` that a config asks for; None if its command does not train."""
    found: str | None = OmegaConf.select(config, "resume.mode")
    return found


def goes_on_in_its_folder(config: DictConfig) -> bool:
    """Whether the run may go on with one that lies in the folder that ``out=`` names."""
    return mode(config) in (AUTO, MUST)


def settle(config: DictConfig, folder: Path | None) -> None:
    """Point ``ckpt_path`` at the run in a folder, if ``resume=`` asks for it and the run has a checkpoint.

    Args:
        folder: that the user names; None for a new one.

    Raises:
        ValueError: what ``resume=`` asks for cannot be done, or the training would begin anew without a word.
    """
    asked, named = mode(config), OmegaConf.select(config, "ckpt_path")
    if asked is None:
        return
    if asked not in (BY_NAME, AUTO, MUST, NEVER):
        raise ValueError(f"resume.mode={asked} must be one of {BY_NAME}, {AUTO}, {MUST} and {NEVER}")
    if asked == NEVER and named is not None:
        raise ValueError(
            f"resume=never begins a new training, and ckpt_path={named} goes on with one; give one of them"
        )
    if asked == BY_NAME and named is None and folder is None and slurm_starts():
        raise ValueError(
            f"SLURM starts this job again (SLURM_RESTART_COUNT={slurm_starts()}), and the training would begin anew in "
            "a new folder; give out=FOLDER resume=auto to go on, or resume=never to begin anew each time"
        )
    if asked in (BY_NAME, NEVER):
        return
    if folder is None:
        if run_of(named) is None:
            raise ValueError(f"resume={asked} goes on with the run in the folder that out= names; give out=FOLDER")
    elif any((folder / "checkpoints").glob("*.ckpt")):
        config.ckpt_path = str(folder)
    elif asked == MUST and named is None:
        raise ValueError(f"resume=must: {folder} holds no checkpoint; resume=auto would begin a new training there")
    elif is_first_process():
        begins = "a new training begins there" if named is None else f"the training goes on from ckpt_path={named}"
        say(f"resume={asked}: {folder} holds no checkpoint; {begins}")
