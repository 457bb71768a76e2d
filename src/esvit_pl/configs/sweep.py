"""The table at the end of a sweep (``-m``), and the refusal of jobs that cannot be part of one.

Named in conf/hydra/default.yaml, under ``hydra.callbacks``. Hydra makes one `SweepTable` in the process that sweeps and
sends copies to the processes of the jobs; everything that the table shows comes from the run folders, so that it does
not matter where the jobs ran. After a failed job, and after Ctrl-C, Hydra does not call ``on_multirun_end``: the
command calls `close` instead (configs/command_line.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs.processes import processes
from esvit_pl.printing import say
from esvit_pl.runs.folder import RunFolder, remove_empty
from esvit_pl.runs.reading import Run, find_runs
from esvit_pl.runs.table import COLUMNS, draw, goal, ranked, report, run_table, write_csv

_LOCAL_LAUNCHERS = ("BasicLauncher", "JoblibLauncher")  # their jobs have the environment of the sweep
_REMEDY = """\
Lightning would start the others with this same command line, and each of them would run the whole sweep again.
One of these instead, with N GPUs a job:
  SLURM           hydra/launcher=submitit_slurm hydra.launcher.tasks_per_node=N hydra.launcher.gpus_per_node=N
                  trainer=slurm trainer.devices=N
  one GPU a job   trainer=gpu
  a shell loop    for seed in 1 2 3; do ... seed=$seed; done"""


class SweepTable(Callback):
    """At the end of a sweep: prints the table of its runs, writes ``sweep.csv`` and ``sweep.png`` beside them."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        launcher = str(OmegaConf.select(config, "hydra.launcher._target_")).rpartition(".")[2]
        problem = refusal(config) if launcher in _LOCAL_LAUNCHERS else None
        if problem is not None:
            say(f"\n{problem}", to=sys.stderr)
            sys.exit(1)  # Hydra turns any other exception of a callback into a warning
        _open[:] = [Path(config.hydra.sweep.dir)]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        close()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write a ``results.json`` for a job that failed before it could write one itself."""
        folder, notes = Path(config.hydra.runtime.output_dir), config.hydra.output_subdir
        is_run = (
            notes is not None and (folder / notes / "overrides.yaml").is_file()
        )  # else `discard_run_folder` has removed it
        if job_return.status is JobStatus.FAILED and is_run and not (folder / "results.json").exists():
            RunFolder(folder).update(status="failed", error=_message(job_return._return_value))


def _message(error: BaseException) -> str:
    """The text of an error that was meant for the user (configs/command_line.py); other errors with their name."""
    text = str(error).strip()
    return text if isinstance(error, CompactHydraException) else f"{type(error).__name__}: {text}"


_open: list[Path] = []
"""The folder of the sweep of this process that has no table yet."""


def close() -> None:
    """Show the table of the sweep that has begun in this process, once; a sweep without any run leaves no folder."""
    while _open:
        folder = _open.pop()
        runs = find_runs(folder) if folder.is_dir() else []
        if runs:
            say(f"\n{summary(folder, runs)}")
        else:
            _discard(folder)


def summary(folder: Path, runs: list[Run]) -> str:
    """Write ``sweep.csv`` and ``sweep.png``; the table, and where the files lie, as text.

    The runs are sorted by their `goal`; without one they stay in their order, and there is no picture.
    """
    metric = goal(runs)
    columns = COLUMNS if metric is None else (metric, *COLUMNS)
    files = [folder / "sweep.csv"]
    if metric is not None:
        runs = ranked(runs, metric)
        files += draw(runs, metric, folder / "sweep.png")
    write_csv(run_table(runs, columns, base=folder), files[0])
    return "\n".join([report(runs, columns, base=folder), "", f"{folder}/", *(f"  {path.name}" for path in files)])


def _discard(folder: Path) -> None:
    """Take the sweep's folder away if nothing is in it but Hydra's note."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"multirun.yaml"}:
        with suppress(OSError):  # a folder that cannot be removed stays
            (folder / "multirun.yaml").unlink(missing_ok=True)
            remove_empty(folder)


# -- jobs of several processes


def refusal(cfg: DictConfig, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why a job with this config cannot be one of a sweep: Lightning would start its processes. None if it can be.

    Args:
        environment: of the job; torchrun, srun and jsrun show themselves there.
    """
    if _is_launched(environment) or _spawns(OmegaConf.select(cfg, "trainer.strategy")):
        return None
    count = processes(cfg)
    return None if count == 1 else f"a job of a sweep cannot train with {count} processes.\n{_REMEDY}"


def job_refusal(cfg: DictConfig) -> str | None:
    """`refusal` inside a job; None for a run of its own."""
    from hydra.core.hydra_config import HydraConfig

    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return refusal(cfg) if in_sweep else None


def _is_launched(environment: Mapping[str, str]) -> bool:
    """Whether somebody else has started this process's peers, as Lightning would see it."""
    if "LOCAL_RANK" in environment or "JSM_NAMESPACE_LOCAL_RANK" in environment:
        return True
    return "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def _spawns(strategy: object) -> bool:
    """Whether processes come from a function of this one, which no command line is needed for."""
    method = strategy.get("start_method", "") if isinstance(strategy, Mapping) else strategy
    return any(word in str(method) for word in ("spawn", "fork", "notebook"))
