"""What a command accepts, asked of Hydra beside the run that is going on, whose global state is put back afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import cache
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs.checked_loader import checked_loader
from esvit_pl.configs.instantiation import hydra_has_whitelist
from esvit_pl.configs.near_match import ConfigSpace

CONFIGS = "esvit_pl.conf"


def version_base() -> dict[str, str]:
    """Hydra 1.3 wants ``version_base``; 1.4 warns about it."""
    return {} if hydra_has_whitelist() else {"version_base": "1.3"}


@contextmanager
def hydra_of_our_own(package: str = CONFIGS, config_dir: str | None = None) -> Iterator[None]:
    """Use Hydra with the configs of a package, and restore its former global state afterwards, even another's.

    Args:
        config_dir: a folder that is searched first, as by ``--config-dir``.
    """
    before, job = (
        GlobalHydra.instance().hydra,
        deepcopy(JobRuntime.instance().conf),
    )  # the next job's folder has its name
    GlobalHydra.instance().clear()
    try:
        with checked_loader(), hydra.initialize_config_module(package, **version_base()):
            if config_dir is not None:
                _search_first(config_dir)
            yield
    finally:
        GlobalHydra.instance().hydra, JobRuntime.instance().conf = before, job


def _search_first(folder: str) -> None:
    from hydra._internal.config_repository import ConfigRepository

    main = GlobalHydra.instance().hydra
    assert main is not None
    loader: Any = main.config_loader
    loader.config_search_path.prepend("command-line", f"file://{os.path.abspath(folder)}")
    loader.repository = ConfigRepository(loader.config_search_path)


def _search_also(main: Any, settings: Sequence[str]) -> None:
    """Look where ``hydra.searchpath=[...]`` says, too."""
    from hydra._internal.config_repository import ConfigRepository
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = [word for word in settings if word.lstrip("+").startswith("hydra.searchpath=")]
    loader: Any = main.config_loader
    for override in OverridesParser.create().parse_overrides(words):
        for place in cast(list[str], override.value()):
            loader.config_search_path.append("command-line", str(place))
    loader.repository = ConfigRepository(loader.config_search_path)


def config_space(settings: Sequence[str], package: str, config_name: str, config_dir: str | None = None) -> ConfigSpace:
    """Groups and keys, composed with those choices in `settings` that exist; no keys if even that fails."""
    with hydra_of_our_own(package, config_dir):
        main = GlobalHydra.instance().hydra
        assert main is not None
        _search_also(main, settings)
        groups = {name: main.config_loader.get_group_options(name) for name in main.list_all_config_groups()}
        chosen = [
            setting
            for setting in settings
            if (name := setting.lstrip("+").partition("=")[0]) in groups and setting.partition("=")[2] in groups[name]
        ]
        for overrides in (chosen, []):
            with suppress(Exception):  # Hydra has already reported it
                tree = OmegaConf.to_container(hydra.compose(config_name, overrides), resolve=False)
                flat = dict(flat_keys(tree))
                unchosen = [name for name in groups if flat.get(name) is None]
                return ConfigSpace(groups, list(flat), unchosen)
        return ConfigSpace(groups)


def defaults(package: str, config_name: str, choices: Mapping[str, Any]) -> dict[str, Any]:
    """The config with these options and none of anybody's values; empty if it cannot be composed.

    Args:
        choices: group -> option, as Hydra notes it; experiments, debug switches and Hydra's own groups are left out.
    """
    without = ("experiment", "preset", "preset_of_loss", "debug", "hparams_search", "paths")
    words = [
        f"{group}={option}"
        for group, option in choices.items()
        if isinstance(option, str) and group not in without and not group.startswith("hydra")
    ]
    compose = _composed_once if package == CONFIGS else _composed  # our own files stay as they are
    return compose(package, config_name, tuple(words))


def _composed(package: str, config_name: str, words: tuple[str, ...]) -> dict[str, Any]:
    with suppress(Exception), hydra_of_our_own(package):
        return cast(dict[str, Any], OmegaConf.to_container(hydra.compose(config_name, list(words)), resolve=False))
    return {}


_composed_once = cache(_composed)  # the jobs of a sweep ask again and again


def flat_keys(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every node, branches included."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, Mapping):
        for name, child in node.items():
            key = f"{prefix}.{name}" if prefix else str(name)
            yield key, child
            yield from flat_keys(child, key)
