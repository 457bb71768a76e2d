"""What a config may say under ``hydra:``. Hydra builds callbacks, log handlers, launchers and sweepers of it.

People share configs as data, so a name that leads to code must stand on a list here, or the user names it in the
environment: ``ESVIT_TRUSTED_TARGETS=my_project.callbacks.`` for code, ``ESVIT_TRUSTED_TARGETS=hydra.launcher.setup``
for a setting of Hydra's. `checked_loader` asks for these checks before Hydra sees a config.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NoReturn

from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs.instantiation import (
    PLUGINS,
    VARIABLE,
    check_target,
    import_plugins,
    own_packages,
    trusted_by_user,
)

_CORE = "hydra._internal.core_plugins"
_TARGETS = {
    "callbacks": (
        "esvit_pl.configs.run_folder.RunFolders",
        "esvit_pl.configs.sweep.SweepTable",
        "hydra.experimental.callbacks.LogJobReturnCallback",
    ),
    "launcher": (
        f"{_CORE}.basic_launcher.BasicLauncher",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    ),
    "sweeper": (
        f"{_CORE}.basic_sweeper.BasicSweeper",
        "hydra_plugins.hydra_ax_sweeper.ax_sweeper.AxSweeper",
        "hydra_plugins.hydra_nevergrad_sweeper.nevergrad_sweeper.NevergradSweeper",
        "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
    ),
}
"""Classes that may stand in these nodes."""
_SAMPLER = re.compile(r"optuna\.samplers\.[A-Z]\w*Sampler")
_LOGGING = (
    "logging.FileHandler",
    "logging.Formatter",
    "logging.NullHandler",
    "logging.StreamHandler",
    "logging.handlers.RotatingFileHandler",
    "logging.handlers.TimedRotatingFileHandler",
    "colorlog.ColoredFormatter",
)
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
ENVIRONMENT = (
    *("CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    *("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("KMP_AFFINITY", "KMP_BLOCKTIME", "OMP_PLACES", "OMP_PROC_BIND"),
    *("GLOO_SOCKET_IFNAME", "NCCL_ALGO", "NCCL_BLOCKING_WAIT", "NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_IB_DISABLE"),
    *("NCCL_IB_HCA", "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_PROTO", "NCCL_SHM_DISABLE", "NCCL_SOCKET_IFNAME"),
    *("TORCH_DISTRIBUTED_DEBUG", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_BLOCKING_WAIT"),
    *("HYDRA_FULL_ERROR", "PYTHONFAULTHANDLER", "PYTHONUNBUFFERED", "TOKENIZERS_PARALLELISM", "WANDB_MODE"),
)
"""Variables that ``hydra.job.env_set`` may set. None names code, a library, a file or another machine."""
_SCALAR = r"hydra\.(?:run\.dir|sweep\.(?:sub)?dir|job\.(?:name|num|id|override_dirname)|runtime\.(?:output_dir|cwd))"
_REFERENCE = re.compile(rf"\$\{{(?:{_SCALAR}|[A-Za-z_][\w.]*|(?:oc\.env|now):[\w.,%:/ -]*)\}}")
_LOG_FILE = re.compile(r"\$\{hydra\.runtime\.output_dir\}/(?:[\w./-]|\$\{hydra\.job\.name\})+")


class Refused(CompactHydraException, ValueError):
    """A config wants of Hydra what a config may not want."""


def check_hydra(config: DictConfig) -> None:
    """Raise `Refused`, with the key and what to do, for a setting under ``hydra:`` that is not known as harmless.

    Values are read as they are written: an interpolation may become another value when Hydra asks for it later.
    """
    whole: Any = OmegaConf.to_container(config, resolve=False)
    hydra = whole.get("hydra")
    if not isinstance(hydra, dict):
        raise Refused(f"hydra={hydra!r}: must be a group of settings")
    for path, key, value in _leaves(hydra, "hydra"):
        node = path.split(".")[1]
        if _is_allowed(path):
            continue
        if node in ("hydra_logging", "job_logging"):
            _check_logging(path, key, value)
        elif node in _TARGETS:
            _check_built(path, key, value, node, whole)
        elif key in ("_target_", "()"):
            _refuse(path, value, "nothing is built here")
    _check_job(hydra)


def check_search_path(place: str) -> None:
    """Raise `Refused` for a place of ``hydra.searchpath`` that runs code: ``pkg://`` imports the package."""
    scheme, separator, name = place.partition("://")
    if not separator or scheme == "file":
        return
    name = name.strip("/").replace("/", ".")
    known = ("esvit_pl.conf", *own_packages(), *(part.rstrip(".") for part in trusted_by_user()))
    if scheme != "pkg" or not any(f"{name}.".startswith(f"{each}.") for each in known):
        raise Refused(
            f"hydra.searchpath: {place} makes Python import what a config names; name a folder (file:///path), or "
            f"trust the package in the environment: ESVIT_PLUGINS={name.partition('.')[0]}"
        )


# -- nodes of which Hydra builds something


def _check_built(path: str, key: str, value: Any, node: str, whole: Mapping[Any, Any]) -> None:
    if key == "_target_" or path == "hydra.sweeper.custom_search_space":
        top = path.count(".") == (3 if node == "callbacks" else 2)
        inner = node == "sweeper" and isinstance(value, str) and _SAMPLER.fullmatch(value)
        if value is not None and not inner and not (top and value in _TARGETS[node]):
            _check_own(path, value)
    elif isinstance(value, str) and "${" in value and not _is_plain(value, whole):
        _refuse(path, value, "an interpolation may only name one setting or variable here (${seed}, ${oc.env:X})")
    elif path == "hydra.sweeper.storage":
        if value is not None and not re.match(r"sqlite:///[\w./-]+$", str(value)):
            _refuse(path, value, "a config may only name a file, such as sqlite:///sweep.db")
    elif node == "launcher":
        _check_launcher(path, key, value)


def _check_launcher(path: str, key: str, value: Any) -> None:
    """Launchers write shell scripts of their settings, and read pickles from their folder."""
    if path.count(".") > 2:
        _refuse(path, value, "a config may give a launcher single numbers and words, no commands and no lists")
    if isinstance(value, str) and not value.isprintable():
        _refuse(path, value, "must be one line")
    if key == "submitit_folder" and not re.fullmatch(r"\$\{hydra\.sweep\.dir\}(/(?!\.\.)[\w.%-]+)*", str(value)):
        _refuse(path, value, "must lie in ${hydra.sweep.dir}")
    if key == "pre_dispatch" and not re.fullmatch(r"all|[\d* ]*(n_jobs)?[\d* ]*", str(value)):
        _refuse(path, value, "must be a number, all, or such as 2*n_jobs")


def _is_plain(text: str, whole: Mapping[Any, Any]) -> bool:
    """Whether the interpolations of a text can give nothing but text, now and later."""
    rest = _REFERENCE.sub("", text)
    if "${" in rest:
        return False
    if rest or text.count("${") > 1 or ":" in text or re.fullmatch(rf"\$\{{{_SCALAR}\}}", text):
        return True
    value: Any = whole
    for name in text[2:-1].split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value is not None and not isinstance(value, dict | list) and "${" not in str(value)


def _check_own(path: str, target: Any) -> None:
    import_plugins()  # they may `allow` it
    if not isinstance(target, str):
        _refuse(path, target, "must be a dotted name")
    try:
        check_target(path, target, trusted_by_user())
    except ValueError as error:
        raise Refused(str(error)) from None


# -- logging


def _check_logging(path: str, key: str, value: Any) -> None:
    """`logging.config` calls ``class`` and ``()``, imports ``ext://name``, and sets attributes that ``.`` names."""
    if key in ("class", "()"):
        if value not in _LOGGING:
            _check_own(path, value)
    elif "..." in f"{path}.".replace("[", ".") or key == ".":
        _refuse(path, value, "a config must not set attributes of log handlers")
    elif key == "filename":
        if not _LOG_FILE.fullmatch(str(value)) or ".." in str(value):
            _refuse(path, value, "a log lies in the run's folder: ${hydra.runtime.output_dir}/NAME.log")
    elif isinstance(value, str) and re.match(r"\s*[a-z]+://", value) and value not in _STREAMS:
        _refuse(path, value, f"must be {' or '.join(_STREAMS)}")
    elif isinstance(value, str) and "${" in value:
        _refuse(path, value, "interpolations have no place in a log's settings")
    elif key == "style" and value not in ("%", "$"):
        _refuse(path, value, "must be % or $: this style reads attributes of objects")


# -- the job


def _check_job(hydra: Mapping[str, Any]) -> None:
    job = hydra.get("job")
    if not isinstance(job, dict) or not isinstance(job.get("env_set", {}), dict):
        raise Refused(f"hydra.job={job!r}: must be a group of settings, and so must hydra.job.env_set")
    variables = job.get("env_set", {})
    for name, value in variables.items():
        if name in (VARIABLE, PLUGINS):
            raise Refused(f"hydra.job.env_set.{name}: only the shell sets this variable; it says which code is trusted")
        if name not in ENVIRONMENT and not _is_allowed(f"hydra.job.env_set.{name}"):
            _refuse(f"hydra.job.env_set.{name}", value, "a config must not set this variable; set it in the shell")
    if isinstance(job.get("name"), str) and {"/", "\\"} & set(job["name"]):
        _refuse("hydra.job.name", job["name"], "is a part of file names and must not hold a slash")
    subdir = hydra.get("output_subdir")
    if isinstance(subdir, str) and (PurePath(subdir).is_absolute() or ".." in PurePath(subdir).parts or "${" in subdir):
        _refuse("hydra.output_subdir", subdir, "must be a folder inside the run's folder")


# -- both


def _leaves(node: Any, path: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted path, last key that is no index, value) of every value; an empty branch has none."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from _leaves(child, f"{path}.{name}", str(name))
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, child in enumerate(node):
            yield from _leaves(child, f"{path}.{index}", key)
    else:
        yield path, key, node


def _is_allowed(path: str) -> bool:
    """Whether the user trusts this setting by its name."""
    return any(path == name or path.startswith(f"{name.rstrip('.')}.") for name in trusted_by_user())


def _refuse(path: str, value: Any, why: str) -> NoReturn:
    raise Refused(
        f"{path}={str(value)!r}: {why}. If you want it all the same, say so in the environment: "
        f"{VARIABLE}={re.sub(r'([.][0-9]+)+$', '', path)}"
    )
