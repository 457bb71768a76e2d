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
from hydra.core.object_type import ObjectType
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

    def get_group_options(
        self, group_name: str, results_filter: Any = ObjectType.CONFIG, config_name: Any = None, overrides: Any = None
    ) -> list[str]:
        """What a group offers. ``--help`` asks for every group, and Hydra would copy all its configs each time."""
        if config_name is None and not overrides:
            return list(self.repository.get_group_options(group_name, results_filter))
        return list(super().get_group_options(group_name, results_filter, config_name, overrides))


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
