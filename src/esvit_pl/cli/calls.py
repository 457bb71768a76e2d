"""The commands as functions, for notebooks and scripts: ``esvit_pl.pretrain``, ``evaluate``, ``plan``,
``compose``, ``list_backbones``.

They do what the commands do with the same configs, and leave nothing behind in the process: Hydra's global state,
random generators, warning filters and log levels are afterwards as they were.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from esvit_pl.cli.app import hints, version_base
from esvit_pl.cli.near_match import near

if TYPE_CHECKING:
    from esvit_pl.cli.plan import Plan
    from esvit_pl.cli.result import Result
    from esvit_pl.datasets import Splits

    Images = str | os.PathLike[str] | Splits | None

COMMANDS = ("pretrain", "linear", "knn")
CONFIGS = "esvit_pl.conf"


def pretrain(
    data: Images = None,
    out: str | os.PathLike[str] | None = None,
    backbone: str | None = None,
    epochs: int | None = None,
    **overrides: Any,
) -> Result:
    """Pretrain a backbone without labels, then measure it: ``esvit-pretrain`` as a function.

        run = esvit_pl.pretrain("photos/", out="logs/mine", backbone="swin_tiny_w7", epochs=100, trainer="gpu")
        run.backbone, run.checkpoint, run.metrics["knn/top1"], run.figures["learning_curve"]

    Args:
        data: a folder of images, the name of a ``dataset`` option ("photographs"), or ``datasets.Splits`` of your own.
            May be left out where an ``experiment`` brings its images.
        out: folder of the run; by default a new one, ``logs/pretrain/runs/<time>``. With ``trainer="ddp"`` give one,
            so that the script means the same folder on every process.
        backbone: one of `list_backbones()`.
        epochs: length of the training.
        overrides: every other setting of the command: an option of a group (``loss="view"``, ``trainer="gpu"``,
            ``experiment="embedded"``), a dict of a group's settings (``optimizer={"lr": 0.001}``), or a dotted name
            (``**{"loss.num_prototypes": 4096}``).

    Raises:
        ValueError: a setting that does not exist (with near ones) or does not fit; `out` holds a run already.
    """
    from esvit_pl.cli import pretrain as job

    words = settings({"backbone": backbone, "trainer.max_epochs": epochs}, overrides)
    cfg, choices, images = _prepared("pretrain", data, out, words)
    _need("pretrain", cfg, images, ())
    if cfg.dry_run:
        raise ValueError("dry_run is for the command; esvit_pl.plan(...) takes the same arguments and starts nothing")
    _note(Path(cfg.paths.output_dir), words)
    with nothing_left_behind():
        return job.pretrain(cfg, images, default_callbacks=choices.get("callbacks") == "default")


def plan(data: Images = None, backbone: str | None = None, epochs: int | None = None, **overrides: Any) -> Plan:
    """What `pretrain` with these arguments would be: steps, global batch, learning rate, parameters, memory, disk.

        print(esvit_pl.plan("photos/", backbone="swin_base_w14", trainer={"devices": 8}))

    Nothing is started, and no image is read.
    """
    from esvit_pl.cli import plan as planning

    words = settings({"backbone": backbone, "trainer.max_epochs": epochs}, overrides)
    cfg, _, images = _prepared("pretrain", data, None, words)
    _need("pretrain", cfg, images, ())
    with nothing_left_behind():
        return planning.make(cfg, images)


def evaluate(
    ckpt_path: str | os.PathLike[str],
    data: Images = None,
    out: str | os.PathLike[str] | None = None,
    *,
    probes: Sequence[str] = ("knn",),
    epochs: int | None = None,
    knn: Mapping[str, Any] | None = None,
    linear: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Result:
    """Measure a checkpoint's frozen backbone: ``esvit-knn`` and ``esvit-linear`` as a function.

        run = esvit_pl.evaluate(run.checkpoint, "photos/", probes=["knn", "linear"], linear={"lr": [0.001, 0.01]})
        run.metrics["knn/top1"], run.metrics["linear/top1"]

    Args:
        ckpt_path: a checkpoint of `pretrain`.
        data: as in `pretrain`; labelled.
        out: folder, with one folder inside for each probe; by default a new one, ``logs/evaluate/runs/<time>``.
        probes: "knn", "linear" or both.
        epochs: length of the linear probe.
        knn: settings of the k-NN, such as ``{"k": [20, 100]}``.
        linear: settings of the linear probe, such as ``{"lr": [0.01, 0.1], "last_blocks": 4}``.
        overrides: every other setting of the commands, as in `pretrain`: ``augment="embedded"``, ``trainer="gpu"``.
    """
    from esvit_pl.cli import knn as knn_job
    from esvit_pl.cli import linear as linear_job
    from esvit_pl.cli.pictures import draw_comparison
    from esvit_pl.cli.result import Result
    from esvit_pl.cli.run_folder import RunFolder

    jobs = {"knn": knn_job.evaluate, "linear": linear_job.evaluate}
    own: dict[str, Mapping[str, Any]] = {
        "knn": {"module": knn or {}},
        "linear": {"module": linear or {}, "trainer.max_epochs": epochs},
    }
    wrong = [name for name in probes if name not in jobs]
    if wrong or isinstance(probes, str) or not probes:
        raise ValueError(f"evaluate needs probes of 'knn' and 'linear' as a list, got {probes!r}")
    folder = _new_folder("evaluate", out)
    finished = {}
    for name in probes:
        words = settings({"ckpt_path": Path(ckpt_path)}, own[name], overrides)
        cfg, _, images = _prepared(name, data, folder / name, words)
        _need(name, cfg, images, ("ckpt_path",))
        with nothing_left_behind():
            finished[name] = jobs[name](cfg, images)
    metrics = {key: value for run in finished.values() for key, value in run.metrics.items()}
    table = {name: {"pretrained": metrics[f"{name}/top1"]} for name in finished}
    summary = RunFolder(folder)
    summary.update(status="finished", **table, metrics=metrics)
    draw_comparison(folder / "figures", table)
    return Result(folder, next(iter(finished.values())).backbone, Path(ckpt_path), metrics)


def compose(command: str, *overrides: str) -> DictConfig:
    """The config that ``esvit-<command> <overrides>`` would run with; nothing is run, and no global state is left.

        cfg = esvit_pl.compose("pretrain", "backbone=swin_small_w7", "loss.region_start_epoch=20")

    Args:
        command: "pretrain", "linear" or "knn".
        overrides: words of the command line.

    Raises:
        ValueError: no such command, or a word that Hydra refuses, with its near matches.
    """
    return _composed(command, overrides)[0]


def list_backbones(pattern: str = "*") -> list[str]:
    """Names for ``backbone=``; `pattern` may hold ``*`` and ``?``, as in ``list_backbones("swin_*_w14")``."""
    options = (path.name for path in files(CONFIGS).joinpath("backbone").iterdir())
    names = sorted(name.removesuffix(".yaml") for name in options if name.endswith(".yaml"))
    return [name for name in names if fnmatchcase(name, pattern)]


# -- Python values as words of a command line


def settings(*groups: Mapping[str, Any]) -> list[str]:
    """Overrides of nested or dotted settings, options of groups before their values; None in the first is left out.

    settings({"loss": "view"}, {"optimizer": {"lr": 0.1}})    # ["loss=view", "optimizer.lr=0.1"]
    """
    flat: dict[str, Any] = {}
    for number, group in enumerate(groups):
        flat |= {key: value for key, value in _flat(group) if number or value is not None}
    return [f"{key}={_word(value)}" for key, value in sorted(flat.items(), key=lambda item: "." in item[0])]


def _flat(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in group.items():
        key = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping) and value:
            yield from _flat(value, key)
        elif not isinstance(value, Mapping):
            yield key, value


def _word(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        return text if text.isidentifier() else _quoted(text)
    return str(value)


def _quoted(text: str) -> str:
    """Between quotes nothing is special but the quote and the backslashes before it."""
    if "'" not in text and not text.endswith("\\"):
        return f"'{text}'"
    escaped = text.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}{chr(92) if escaped.endswith(chr(92)) else ''}'"


# -- from words to a config


def _composed(command: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The config, and which option of each group was chosen."""
    if command not in COMMANDS:
        raise ValueError(f"compose needs one of {', '.join(COMMANDS)}, got {command!r}")
    wrong = [word for word in overrides if word.startswith("-")]
    if wrong:
        raise ValueError(f"compose takes settings such as 'seed=1', got the flag {wrong[0]}; flags are for the shell")
    words = list(overrides)
    if not any(word.startswith("paths.output_dir=") for word in words):
        words.append(f"paths.output_dir='${{paths.log_dir}}/{command}'")  # only a command has hydra:runtime.output_dir
    with hydra_of_our_own():
        try:
            cfg = hydra.compose(command, words, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            lines = [f"{command}: {str(error).strip()}", *hints(overrides, CONFIGS, command)]
            raise ValueError("\n".join(lines)) from None
        choices = dict(cfg.hydra.runtime.choices)
        with open_dict(cfg):
            del cfg["hydra"]
    return cfg, choices


@contextmanager
def hydra_of_our_own() -> Iterator[None]:
    """Hydra on our configs inside; afterwards the Hydra that was there before, even that of another application."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module(CONFIGS, **version_base()):
            yield
    finally:
        GlobalHydra.instance().hydra = before


def _prepared(
    command: str, data: Images, out: str | os.PathLike[str] | None, words: list[str]
) -> tuple[DictConfig, dict[str, Any], Splits | None]:
    """Config, choices, and the images where they were given as an object."""
    folder = _new_folder(command, out, going_on=any(word.startswith("ckpt_path=") for word in words))
    given = None
    if isinstance(data, (str, os.PathLike)):
        words = [*_dataset_words(os.fspath(data)), *words]
    else:
        given = data
    cfg, choices = _composed(command, [*words, f"paths.output_dir={_word(folder)}"])
    return cfg, choices, given


def _dataset_words(data: str) -> list[str]:
    """A folder, or an option of the group ``dataset``."""
    if Path(data).is_dir():
        return ["dataset=folder", f"dataset.root={_word(data)}"]
    options = sorted(path.name.removesuffix(".yaml") for path in files(CONFIGS).joinpath("dataset").iterdir())
    if data not in options:
        close = near(data, options)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(
            f"data={data!r} is no folder, and no dataset of this name is known{hint} ({', '.join(options)})"
        )
    return [f"dataset={data}"]


def _need(command: str, cfg: DictConfig, images: Splits | None, keys: Sequence[str]) -> None:
    missing = [key for key in keys if cfg.get(key) is None]
    if images is None and cfg.get("dataset") is None:
        missing.append("data")
    if missing:
        raise ValueError(f"{command} needs {' and '.join(missing)}: a folder of images, or the name of a dataset")
    empty = OmegaConf.missing_keys(cfg)
    if empty:
        raise ValueError(f"no value for {', '.join(sorted(empty))}; give each as a setting")


def _new_folder(command: str, out: str | os.PathLike[str] | None, *, going_on: bool = True) -> Path:
    if out is None:
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        return Path(os.environ.get("ESVIT_LOG_DIR", "logs")) / command / "runs" / stamp
    folder = Path(out)
    # Further processes of one training come here after the first has begun to write.
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if first and not going_on and (folder / "results.json").exists():
        raise ValueError(
            f"out={folder} holds a run already; give another folder, or go on with that run by "
            f"ckpt_path='{folder}/checkpoints/last.ckpt'"
        )
    return folder


def _note(folder: Path, words: Sequence[str]) -> None:
    """What was changed, where Hydra notes it for a command and ``esvit-table`` looks for it."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(list(words)), folder / ".hydra" / "overrides.yaml")


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Random generators, warning filters, log levels and the environment are afterwards as they were."""
    from esvit_pl.metrics.isolation import same_random_state

    loggers = {name: logging.getLogger(name).level for name in ("pytorch_lightning", "lightning_fabric")}
    environment = dict(os.environ)
    try:
        with same_random_state(), warnings.catch_warnings():
            yield
    finally:
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
