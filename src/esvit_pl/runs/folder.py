"""The files of a run that say what was run, where, and with which results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from esvit_pl.printing import say
from esvit_pl.runs.claim import claimed
from esvit_pl.runs.lock import NAME as LOCK
from esvit_pl.secret_values import named, starred
from esvit_pl.signals import end_in_order
from esvit_pl.whole import replacing

PACKAGES = (
    "esvit_pl",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "timm",
    "hydra-core",
    "numpy",
    "pillow",
)


class RunFolder:
    """Writes ``config.yaml``, ``environment.json`` and ``results.json`` of one run.

    >>> run = RunFolder("logs/a_run")
    >>> with run.status():
    ...     run.update(metrics={"knn/top1": 0.591})
    >>> run.results
    {'status': 'finished', 'metrics': {'knn/top1': 0.591}}

    Args:
        path: of the folder.
        writes: whether this process writes into it; only the first one should.
    """

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes
        self.results: dict[str, Any] = {}
        self._notes: dict[Path, bytes] = {}

    def describe(self, cfg: DictConfig, *, going_on_after: int | None = None) -> None:
        """Write the resolved ``config.yaml`` (`readable`) and ``environment.json``: the run begins.

        Files of an earlier run go now, if this process has claimed the folder to replace it (`runs.claim`).

        Args:
            going_on_after: optimizer steps that the run in this folder had done, when it goes on; what it wrote later
                is set aside (`runs.set_aside`).
        """
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            claim = claimed(self.path)
            if claim is not None:
                say_removed(self.path, claim.clear())
            if going_on_after is not None:
                from esvit_pl.runs.set_aside import set_aside  # which loads torch

                for line in set_aside(self.path, going_on_after):
                    say(line)
            if claim is not None and claim.note is not None:
                claim.note(self.path)
            OmegaConf.save(OmegaConf.create(readable(cfg)), self.path / "config.yaml")
            _write_json(self.path / "environment.json", environment())
            files = [self.path / name for name in ("config.yaml", "environment.json", LOCK)]
            files += (self.path / ".hydra").glob("*")
            self._notes = {path: path.read_bytes() for path in files if path.is_file()}

    def make_again(self) -> None:
        """If somebody has removed the folder meanwhile: say so, and write again what the run began with."""
        if not self._notes or (self.path / "config.yaml").exists():
            return
        for path, content in self._notes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        say(
            f"note: {self.path} was removed while the run goes on; it is made again, with config.yaml. The rows of "
            "metrics.csv, checkpoints and figures of before are gone",
        )

    def update(self, **results: Any) -> None:
        """Add entries to ``results.json``, or replace them."""
        self.results.update({name: starred(entry) if name == "error" else entry for name, entry in results.items()})
        self.make_again()
        if self.writes:
            _write_json(self.path / "results.json", self.results)

    @contextmanager
    def status(self) -> Iterator[None]:
        """Write ``status`` into ``results.json``: running, then finished, stopped (Ctrl-C, a signal) or failed."""
        self.update(status="running")
        try:
            with end_in_order():
                yield
        except (KeyboardInterrupt, SystemExit):
            self.end_early(status="stopped")
            raise
        except BaseException as error:
            self.end_early(status="failed", error=f"{type(error).__name__}: {error}")
            raise
        self.update(status="finished")

    def end_early(self, **results: str) -> None:
        """Write how the run ended. On a full disk the word alone takes the place of the old one, in as many bytes."""
        try:
            self.update(**results)
        except OSError:
            running = '"status": "running"'
            with suppress(OSError), (self.path / "results.json").open("r+", encoding="utf-8") as file:
                text = file.read()
                file.seek(0)
                file.write(text.replace(running, f'"status": "{results["status"]}"'.ljust(len(running)), 1))


def readable(cfg: DictConfig) -> dict[str, Any]:
    """The config for others to read: resolved, but secrets and what comes from the environment by their names."""
    return cast(dict[str, Any], named(by_name(cfg)))


def by_name(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config with ``${oc.env:X}`` in place of the variable's value, wherever that has come to.

    SLURM's variables and our own are numbers and folders; they have their values.
    """
    with _variables_by_name():
        return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


@contextmanager
def _variables_by_name() -> Iterator[None]:
    """While this lasts, the environment answers with the question."""

    def env(name: str, *default: Any) -> Any:
        if name.startswith(("SLURM_", "ESVIT_")):
            return oc.env(name, *default)
        return f"${{oc.env:{','.join([name, *('null' if each is None else repr(each) for each in default)])}}}"

    def decode(text: Any, *, _parent_: Any, _node_: Any) -> Any:
        if "${oc.env:" not in str(text):
            return oc.decode(text, _parent_, _node_)
        return f"${{oc.decode:{text if str(text).startswith('${') else repr(text)}}}"

    # Hydra 1.4 comes with an omegaconf that has renamed it.
    register: Any = getattr(OmegaConf, "register_new_resolver", None) or OmegaConf.register_resolver
    register("oc.env", env, replace=True)
    register("oc.decode", decode, replace=True)
    try:
        yield
    finally:
        register("oc.env", oc.env, replace=True)
        register("oc.decode", oc.decode, replace=True)


def say_removed(folder: Path, removed: Sequence[Path]) -> None:
    """Print how many files of an earlier run have gone, and what else lies in the folder."""
    if removed:
        others = sorted(path.name for path in folder.iterdir() if path.name != LOCK and path.suffix != ".log")
        rest = f"; left alone: {', '.join(others)}" if others else ""
        say(f"overwrite=true: removed the {len(removed)} files of an earlier run in {folder}{rest}")


def remove_empty(folder: Path) -> None:
    """Remove an empty folder and then its empty parents, but never the working directory or its parents.

    Raises:
        OSError: the folder is not empty.
    """
    here = Path.cwd()
    folder = folder.resolve()
    kept = {here, *here.parents}
    if folder not in kept:
        folder.rmdir()
    with suppress(OSError):  # stops at the first parent that is not empty
        for above in folder.parents:
            if above in kept:
                break
            above.rmdir()


def environment() -> dict[str, Any]:
    """Versions, machine, git state and command of this process."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": [Path(sys.argv[0]).name, *starred(sys.argv[1:])],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "git": git_state(Path.cwd()),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the git checkout that holds `folder`, and whether it has changes; None if there is no checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain"))}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
