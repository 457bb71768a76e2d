"""Which folder a command writes its run into, settled before Hydra writes anything there.

Named in conf/hydra/default.yaml, under ``hydra.callbacks``: Hydra calls `RunFolders` when a config is composed and
nothing is written yet. The jobs of a sweep, and configs without this callback, come to `claim_of_job` instead.
"""

from __future__ import annotations

import copy
import itertools
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from esvit_pl.configs import resume_mode
from esvit_pl.configs.processes import is_first_process
from esvit_pl.configs.refusals import of_config, of_system
from esvit_pl.printing import say
from esvit_pl.runs.claim import Claim, FolderTaken, claimed, holds_run, run_of
from esvit_pl.runs.folder import say_removed
from esvit_pl.runs.lock import FolderInUse


class RunFolders(Callback):
    """Settles and claims the folder of a run, or of a sweep.

    It is ``out=``, ``hydra.run.dir=`` or ``paths.output_dir=``; without them, for ``ckpt_path=`` of a checkpoint in a
    run folder, that folder; else a new one by the time. A folder that holds a run, or that another process writes into,
    ends the command here.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _sentences_end_the_command():
            if makes_run(config):
                _settle(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _sentences_end_the_command():
            if makes_run(config):
                _settle_sweep(config)


def makes_run(config: DictConfig) -> bool:
    """Whether the command makes run folders; those that do not, run in the working directory and leave no notes."""
    if config.hydra.run.dir == "." and not is_first_process():  # Lightning gives its processes the first one's folder
        return False
    typed = _typed(config)
    own_folder = config.hydra.run.dir != "." and "hydra.run.dir" not in typed
    return config.hydra.output_subdir is not None or "hydra.output_subdir" in typed or own_folder


def _typed(config: DictConfig) -> set[str]:
    """Hydra's own settings that stand on the command line."""
    return {text.lstrip("+").partition("=")[0] for text in config.hydra.overrides.hydra}


@contextmanager
def claim_of_job(cfg: DictConfig) -> Iterator[None]:
    """Hold the folder of a job, unless `RunFolders` has claimed it for the command.

    Raises:
        ValueError: it holds a run, or another process writes there.
    """
    folder = OmegaConf.select(cfg, "paths.output_dir")
    config: Any = HydraConfig.instance().cfg
    settled = config is None or folder is None or claimed(folder) is not None
    if settled or not makes_run(config) or not is_first_process() or OmegaConf.select(cfg, "dry_run"):
        yield
        return
    alone = config.hydra.mode != RunMode.MULTIRUN  # the jobs of a sweep replace nothing: they may share a folder
    overwrite = alone and overwrites(cfg, Path(folder))
    claim = Claim(folder, goes_on=keeps_what_is_in(cfg, Path(folder)), overwrite=overwrite, notes=True)
    _tell(claim)
    try:
        yield
    finally:
        claim.release()


def claim_new(by_time: Path) -> Claim:
    """Claim a new folder. Another run may have begun in the same microsecond: then a number is added."""
    for number in itertools.count(1):
        with suppress(FolderTaken, FolderInUse):
            return Claim(by_time if number == 1 else by_time.with_name(f"{by_time.name}_{number}"))
    raise AssertionError


def goes_on_in(cfg: DictConfig, folder: Path) -> bool:
    """Whether the run that lies in this folder is the one whose checkpoint is resumed."""
    run = run_of(cfg.ckpt_path) if "resume" in cfg else None  # a command that evaluates does not resume `ckpt_path`
    return run is not None and run.resolve() == folder.resolve()


def keeps_what_is_in(cfg: DictConfig, folder: Path) -> bool:
    """Whether a run that lies in this folder goes on there, or begins there again before its first checkpoint."""
    return resume_mode.goes_on_in_its_folder(cfg) or goes_on_in(cfg, folder)


def overwrites(cfg: DictConfig, folder: Path) -> bool:
    """Whether a run in this folder is to be replaced.

    Raises:
        ValueError: the weights that this run begins with lie there.
    """
    if not OmegaConf.select(cfg, "overwrite"):
        return False
    for key in ("ckpt_path", "init_from", "resume_from"):
        value = OmegaConf.select(cfg, key)
        source = Path(str(value)).resolve()
        if value is not None and source.exists() and (source == folder.resolve() or folder.resolve() in source.parents):
            raise ValueError(f"overwrite=true would remove {key}={value} from {folder}; give another folder with out=")
    return True


def refuse_images(cfg: DictConfig, folder: Path) -> None:
    """A run's folder is never read for images: a run in the folder of the images would take them out of the data set.

    Raises:
        ValueError: `folder` is ``dataset.root``, or lies in it and holds images.
    """
    root = OmegaConf.select(cfg, "dataset.root")
    if root is None or not folder.is_dir():
        return
    images = Path(str(root)).expanduser().resolve()
    if images != folder.resolve() and images not in folder.resolve().parents:
        return
    from esvit_pl.datasets.listing import list_images

    if not holds_run(folder) and any(list_images(folder).images.values()):
        raise ValueError(
            f"out={folder} holds images of dataset.root={root}, and a run's folder is never read for images; give the "
            f"run a folder of its own, such as out={folder / 'run'}, or none: then it lies in logs/"
        )


def release() -> None:
    """Let others write into every folder that this command has claimed."""
    while _claims:
        _claims.pop().release()
    while _dry:
        _dry.pop().cleanup()


# -- a run


_claims: list[Claim] = []
_dry: list[tempfile.TemporaryDirectory[str]] = []


def _settle(config: DictConfig) -> None:
    resume_mode.settle(config, _asked_for(config, "run"))
    if OmegaConf.select(config, "dry_run"):
        _dry.append(tempfile.TemporaryDirectory(prefix="esvit_dry_run_"))
        _move(config, _dry[-1].name)
        return
    going_on = run_of(OmegaConf.select(config, "ckpt_path")) if "resume" in config else None
    folder = _asked_for(config, "run") or going_on
    if not is_first_process():  # the first process has claimed the folder, and writes the notes
        _move(config, str(folder or config.hydra.run.dir))
        config.hydra.output_subdir = None
    elif folder is None:
        _keep(claim_new(Path(config.hydra.run.dir)))
        _move(config, str(_claims[-1].folder))
    else:
        refuse_images(config, folder)
        overwrite = overwrites(config, folder)
        _keep(Claim(folder, goes_on=keeps_what_is_in(config, folder), overwrite=overwrite))
        _move(config, str(folder))
        _put_off_notes(config, _claims[-1])


def _put_off_notes(config: DictConfig, claim: Claim) -> None:
    """Where notes of an earlier run lie, Hydra must not write over them before everything has been checked."""
    subdir = str(config.hydra.output_subdir)
    if not (claim.folder / subdir).is_dir():
        return
    task = copy.deepcopy(config)
    with open_dict(task):
        del task["hydra"]
    words = config.hydra.overrides.task
    config.hydra.output_subdir = None

    def note(folder: Path) -> None:
        hydra: Any = copy.deepcopy(HydraConfig.instance().cfg)
        OmegaConf.set_readonly(hydra.hydra, False)
        hydra.hydra.output_subdir = subdir
        (folder / subdir).mkdir(parents=True, exist_ok=True)
        for name, node in (("config", task), ("hydra", hydra), ("overrides", words)):
            OmegaConf.save(node, folder / subdir / f"{name}.yaml")

    claim.note = note


def _move(config: DictConfig, folder: str) -> None:
    """Let Hydra take this folder, and with it ``paths.output_dir``."""
    config.hydra.run.dir = folder


# -- a sweep


def _settle_sweep(config: DictConfig) -> None:
    from esvit_pl.configs.compose import word  # which needs command_line, which needs this file

    if resume_mode.goes_on_in_its_folder(config):
        raise ValueError(
            f"resume={resume_mode.mode(config)} goes on with one run, and a sweep has many; go on with one of its jobs "
            "with ckpt_path=SWEEP/0"
        )
    swept = [text for text in config.hydra.overrides.task if text.startswith("out=") and text != "out=null"]
    if swept and config.get("out") is None:
        raise ValueError(f"{swept[0]}: a sweep has one folder, and each of its jobs one inside; give out=FOLDER")
    asked = _asked_for(config, "sweep")
    if asked is not None:
        config.hydra.sweep.dir = str(asked)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={word(asked)}")  # of which each job's config is made
    folder = Path(config.hydra.sweep.dir)
    refuse_images(config, folder)
    claim = Claim(folder, overwrite=overwrites(config, folder))
    _keep(claim)
    say_removed(claim.folder, claim.clear())


# -- both


def _asked_for(config: DictConfig, mode: str) -> Path | None:
    """The folder that the user names, for a "run" or a "sweep".

    Raises:
        ValueError: two settings name two folders, or one is empty.
    """
    typed = _typed(config)
    named = {
        "out": OmegaConf.select(config, "out"),
        f"hydra.{mode}.dir": config.hydra[mode].dir if f"hydra.{mode}.dir" in typed else None,
        "paths.output_dir": _output_dir(config) if mode == "run" else None,
    }
    given = {key: str(value) for key, value in named.items() if value is not None}
    logs = {"paths.log_dir": str(OmegaConf.select(config, "paths.log_dir", default="logs"))}
    empty = [key for key, value in (given | logs).items() if not value.strip()]
    if empty:
        raise ValueError(f"{empty[0]}= is empty; give a folder, or leave it out")
    folders = {Path(value).expanduser() for value in given.values()}
    if len(folders) > 1:
        both = " and ".join(f"{key}={value}" for key, value in given.items())
        raise ValueError(f"{both} name two folders for one {mode}; give one of them")
    return next(iter(folders), None)


def _output_dir(config: DictConfig) -> str | None:
    """``paths.output_dir`` where it is not the one of conf/paths/default.yaml."""
    paths = OmegaConf.select(config, "paths")
    written = {} if paths is None else OmegaConf.to_container(paths, resolve=False)
    assert isinstance(written, dict)
    return None if written.get("output_dir") in (None, "${hydra:runtime.output_dir}") else str(paths.output_dir)


def _keep(claim: Claim) -> None:
    _claims.append(claim)
    _tell(claim)


def _tell(claim: Claim) -> None:
    if claim.line is not None:
        say(claim.line)


@contextmanager
def _sentences_end_the_command() -> Iterator[None]:
    """Hydra turns other exceptions of a callback into warnings."""
    try:
        yield
    except (ValueError, OSError) as error:
        release()
        say(of_system(error) if isinstance(error, OSError) else of_config(error) or error, to=sys.stderr)
        raise SystemExit(1) from None  # nothing more is to be said about it
