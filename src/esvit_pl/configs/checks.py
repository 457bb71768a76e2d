"""What a config is asked before torch is loaded and before anything is built: values, paths, packages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esvit_pl.configs import config_space, near_match, refusals, typed_values

_FOLDERS = tuple(f"esvit_pl.datasets.{name}" for name in ("folder", "imagenet", "voc2012", "ade20k", "spair71k"))
# Targets that need a package which is not installed with this one -> that package, and our extra that brings it.
_PACKAGES = {
    "pytorch_lightning.loggers.TensorBoardLogger": ("tensorboard", "esvit_pl[tensorboard]"),
    "pytorch_lightning.loggers.WandbLogger": ("wandb", "esvit_pl[wandb]"),
    "pytorch_lightning.loggers.MLFlowLogger": ("mlflow", "mlflow"),
    "pytorch_lightning.loggers.CometLogger": ("comet_ml", "comet-ml"),
    "pytorch_lightning.loggers.NeptuneLogger": ("neptune", "neptune"),
    "esvit_pl.datasets.photographs": ("skimage", "esvit_pl[embedded]"),
}
_MAY_BE_LACKING = ("logger", "callbacks")
_WEIGHTS = (".ckpt", ".pth", ".pt", ".bin", ".safetensors", ".npz")


def problem(cfg: DictConfig, *, package: str, config_name: str, choices: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with a composed config, as a sentence; None if nothing is.

    Args:
        choices: group -> option; empty if somebody else's primary config is used, whose defaults nobody knows.
    """
    try:
        tree = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        defaults = config_space.defaults(package, config_name, choices) if choices else {}
        return _taken_away(cfg, defaults) or refusals.of_config(error)
    early = missing_package(tree) or missing_folder(tree) or missing_file(tree)
    if early is not None:
        return early
    defaults = config_space.defaults(package, config_name, choices) if choices else {}
    return _taken_away(cfg, defaults) or _wrong_values(cfg, tree, defaults, config_name)


def _taken_away(cfg: DictConfig, defaults: Mapping[str, Any]) -> str | None:
    written = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    for name, value in defaults.items():
        rest = written.get(name)  # an experiment may have given single settings to what is not there any more
        is_rest = isinstance(rest, dict) and isinstance(value, dict) and "_target_" in {*value} - {*rest}
        if value is None or name in _MAY_BE_LACKING or (name in written and not is_rest):
            continue
        if isinstance(value, dict):
            return f"~{name} takes away settings that the command reads; leave it out, or choose others: {name}=..."
        return f"~{name} takes away a setting that the command reads; leave it, or set it: {name}={value}"
    return None


def _wrong_values(cfg: DictConfig, tree: Mapping[str, Any], defaults: Mapping[str, Any], command: str) -> str | None:
    wrong = typed_values.problems(tree, defaults, command=command)
    of_others = {key: other for key in wrong if (other := _refers_to(cfg, key)) is not None}
    if len(of_others) == len(wrong):
        wrong = typed_values.problems(tree, defaults, of_others, command)
    else:
        wrong = {key: sentence for key, sentence in wrong.items() if key not in of_others}
    return "\n".join(dict.fromkeys(wrong.values())) or None


def _refers_to(cfg: DictConfig, key: str) -> str | None:
    """The setting whose value this one takes over, ``${...}``: that one is to be changed."""
    above, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, above) if above else cfg
    if not (isinstance(node, DictConfig) and name in node and OmegaConf.is_interpolation(node, name)):
        return None
    written = str(cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))[name])
    return written[2:-1] if re.fullmatch(r"\$\{[\w.]+\}", written) else key


def missing_package(tree: Any, path: str = "") -> str | None:
    """A part of the config whose package is not installed."""
    if not isinstance(tree, Mapping):
        return None
    package, extra = _PACKAGES.get(str(tree.get("_target_")), ("", ""))
    if package and find_spec(package) is None:
        return f"{path} needs the package {package}, which is not installed: pip install '{extra}'"
    found = (missing_package(child, f"{path}.{name}" if path else str(name)) for name, child in tree.items())
    return next(filter(None, found), None)


def missing_folder(tree: Mapping[str, Any]) -> str | None:
    """What is wrong with ``dataset.root``."""
    dataset = tree.get("dataset")
    if not isinstance(dataset, Mapping) or dataset.get("_target_") not in _FOLDERS:
        return None
    root = str(dataset.get("root"))
    key = f"dataset.root={root}"
    if not root.strip():
        return "dataset.root= is empty; give the folder of your images: dataset.root=photos/"
    folder = Path(root).expanduser()
    try:
        if folder.is_dir():
            readable = os.access(folder, os.R_OK | os.X_OK)
            return None if readable else f"{key}: no permission to read this folder (ls -ld {folder} shows whose it is)"
        if folder.exists():
            return f"{key} is a file; give the folder that your images lie in"
    except OSError as error:
        return f"{key}: {refusals.of_system(error)}"
    return f"{key}: there is no such folder{_nearby(root, 'dataset.root')}"


def missing_file(tree: Mapping[str, Any]) -> str | None:
    """A checkpoint that is not there. Names of models, and places on the hub, are left alone."""
    for key in ("ckpt_path", "init_from", "resume_from"):
        path = tree.get(key)
        if path == "":
            return f"{key}= is empty; give a checkpoint, or leave it out"
        if (
            not isinstance(path, str)
            or ":" in path
            or not (path.endswith(_WEIGHTS) or path.startswith(("/", ".", "~")))
        ):
            continue
        try:
            there = Path(path).expanduser().exists()
        except OSError as error:
            return f"{key}={path}: {refusals.of_system(error)}"
        if not there:
            return f"{key}={path}: there is no such file or folder{_nearby(path, key)}"
    return None


def _nearby(path: str, key: str) -> str:
    if "\\" in path or path[1:2] == ":":
        return "; this looks like a path of Windows; with WSL, C:\\photos is /mnt/c/photos"
    close = near_match.near_paths(path)
    if close:
        return f"; did you mean {' or '.join(f'{key}={other}' for other in close)}?"
    if path[:1] in "'\"" or path[-1:] in "'\"":
        return "; the quotes have become a part of the name"
    parent = Path(path).expanduser()
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    return "" if Path(path).is_absolute() and parent == parent.parent else f" (looked in {parent.resolve()})"
