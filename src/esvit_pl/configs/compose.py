"""Composes configs from words of a command line or from Python values, without changing Hydra's global state."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from esvit_pl.configs.config_space import CONFIGS, hydra_of_our_own
from esvit_pl.configs.evaluated_images import refuse_experiment
from esvit_pl.configs.near_match import near
from esvit_pl.configs.quoting import quote_paths, quoted
from esvit_pl.configs.refusals import explain

COMMANDS = ("pretrain", "linear", "knn", "embed", "dense")
TABLES = (".csv", ".tsv", ".parquet")  # as `datasets` has them, which would load torch


def compose(command: str, *overrides: str) -> DictConfig:
    """The config that ``esvit-<command> <overrides>`` would use. Nothing is run, and no global state is changed.

        cfg = esvit_pl.compose("pretrain", "backbone=swin_small_w7", "loss.region_start_epoch=20")

    Args:
        command: "pretrain", "linear", "knn", "embed" or "dense".
        overrides: words of the command line.

    Raises:
        ValueError: no such command, or a word that Hydra refuses, with its near matches.
    """
    return composed(command, overrides)[0]


def list_backbones(pattern: str = "*") -> list[str]:
    """Names for ``backbone=``; `pattern` may hold ``*`` and ``?``, as in ``list_backbones("swin_*_w14")``."""
    return [name for name in options("backbone") if fnmatchcase(name, pattern)]


def options(group: str) -> list[str]:
    """What a config group offers."""
    names = (path.name for path in files(CONFIGS).joinpath(group).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def option_of(made: object, group: str) -> str | None:
    """The option of a group that builds objects of this very class; None if there is none."""
    for name in options(group):
        node: Any = OmegaConf.create(files(CONFIGS).joinpath(group, f"{name}.yaml").read_text(encoding="utf-8"))
        room, _, target = str(node.get("_target_")).rpartition(".")
        if target == type(made).__name__ and getattr(import_module(room), target, None) is type(made):
            return name
    return None


# -- Python values as words of a command line


def settings(*groups: Mapping[str, Any]) -> list[str]:
    """Nested or dotted settings as words of a command line. A None in the first mapping is left out.

    >>> settings({"loss": "view", "seed": None}, {"optimizer": {"lr": 0.1}})  # options of groups come first
    ['loss=view', 'optimizer.lr=0.1']
    """
    flat: dict[str, Any] = {}
    for number, group in enumerate(groups):
        flat |= {key: value for key, value in _flat(group) if number or value is not None}
    return [f"{key}={word(value)}" for key, value in sorted(flat.items(), key=lambda item: "." in item[0])]


def _flat(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in group.items():
        key = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping) and value:
            yield from _flat(value, key)
        elif not isinstance(value, Mapping):
            yield key, value


def word(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(word, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        return text if text.isidentifier() else quoted(text)
    return str(value)


# -- from words to a config


def composed(command: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The config, and which option of each group was chosen."""
    if command not in COMMANDS:
        raise ValueError(f"compose needs one of {', '.join(COMMANDS)}, got {command!r}")
    wrong = [word for word in overrides if word.startswith("-")]
    if wrong:
        raise ValueError(f"compose takes settings such as 'seed=1', got the flag {wrong[0]}; flags are for the shell")
    refusal = None if command == "pretrain" else refuse_experiment(f"esvit-{command}", overrides)
    if refusal is not None:
        raise ValueError(refusal)
    words = quote_paths(overrides)
    if not any(word.startswith("paths.output_dir=") for word in words):
        words.append(f"paths.output_dir='${{paths.log_dir}}/{command}'")  # only a command has hydra:runtime.output_dir
    with hydra_of_our_own():
        try:
            cfg = hydra.compose(command, words, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ValueError(f"{command}: {explain(error, words, CONFIGS, command) or error}") from None
        choices = dict(cfg.hydra.runtime.choices)
        with open_dict(cfg):
            del cfg["hydra"]
    return cfg, choices


def again(*words: str) -> DictConfig:
    """The config of the command that runs, with these ``group=option`` in place of those that were typed."""
    from hydra.core.hydra_config import HydraConfig

    job = HydraConfig.get()
    groups = tuple(word.partition("=")[0] + "=" for word in words)
    typed = [word for word in job.overrides.task if not word.startswith(groups)]
    return hydra.compose(str(job.job.config_name), [*typed, *words])


def dataset_words(data: str) -> list[str]:
    """A folder, a table, or an option of the group ``dataset``."""
    path = Path(data).expanduser()
    if path.is_file() and path.suffix.lower() in TABLES:
        return ["dataset=table", f"dataset.file={word(data)}"]
    names = options("dataset")
    if path.is_dir() or (path.exists() and data not in names):
        return ["dataset=folder", f"dataset.root={word(data)}"]
    if data not in names:
        raise ValueError(f"data={data!r} is neither a folder nor the name of a dataset{_meant(data, names)}")
    return [f"dataset={data}"]


def check_probe(name: str) -> None:
    """Refuse a name that is no option of the group ``evaluator``, with near ones."""
    names = options("evaluator")
    if name not in names:
        raise ValueError(f"probes holds {name!r}, which is no probe{_meant(name, names)}")


def _meant(name: str, names: Sequence[str]) -> str:
    """Near names, and all."""
    close = near(name, names)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{hint} ({', '.join(names)})"
