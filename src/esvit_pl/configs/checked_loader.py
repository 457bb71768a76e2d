"""Where every composed config passes before Hydra uses it: for a run, a sweep and each of its jobs (in other processes
too, which get the loader sent), ``--cfg``, ``--info``, ``--help``, TAB completion, and `esvit_pl.compose`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal import hydra as hydra_internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from omegaconf import DictConfig

from esvit_pl.configs.hydra_nodes import check_hydra, check_search_path


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's loader; what `hydra_nodes` does not know as harmless raises `hydra_nodes.Refused`."""

    def __init__(self, config_search_path: Any) -> None:
        super().__init__(config_search_path=_SearchPath(config_search_path))

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        config = super().load_configuration(*args, **kwargs)
        check_hydra(config)
        return config


class _SearchPath(ConfigSearchPathImpl):
    """Hydra appends here what ``hydra.searchpath`` says, and imports packages afterwards."""

    def __init__(self, path: Any) -> None:
        super().__init__()
        self.config_search_path = list(path.get_path())

    def append(self, provider: str, path: str, anchor: Any = None) -> None:
        if provider.startswith(("hydra.searchpath", "command-line")):
            check_search_path(path)
        super().append(provider, path, anchor)


@contextmanager
def checked_loader() -> Iterator[None]:
    """While this is open, Hydra makes its loaders of `CheckedLoader`."""
    place: Any = hydra_internal
    before = place.ConfigLoaderImpl
    place.ConfigLoaderImpl = CheckedLoader
    try:
        yield
    finally:
        place.ConfigLoaderImpl = before
