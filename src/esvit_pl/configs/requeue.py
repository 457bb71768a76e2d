"""A training that SLURM interrupts goes back into the queue, and goes on from its last step when it starts again."""

from __future__ import annotations

import os
import subprocess
import sys

from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs.processes import is_first_process
from esvit_pl.configs.resume_mode import goes_on_in_its_folder
from esvit_pl.printing import say


def is_wanted(cfg: DictConfig) -> bool:
    """Whether this process is the first of a SLURM job that goes on by itself when it starts again."""
    asked = bool(OmegaConf.select(cfg, "trainer.plugins.auto_requeue")) and goes_on_in_its_folder(cfg)
    return asked and "SLURM_JOB_ID" in os.environ and is_first_process()


def requeue() -> None:
    """Ask SLURM to put this job back into its queue, which ends what is left of it; a line says so."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        wrong = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        wrong = str(error)
    if wrong:
        say(f"could not put SLURM job {job} back into the queue: scontrol requeue {job}: {wrong}", to=sys.stderr)
    else:
        say(f"SLURM job {job} goes back into the queue, and goes on when it starts again")
