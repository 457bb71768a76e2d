"""Builds objects from ``_target_`` nodes, and holds the list of targets that a config may name.

People share configs as data, but a ``_target_`` can call any code. So every target in a tree is checked before anything
is built: its name must have a trusted prefix, and the object of that name must be defined in a trusted package too
(``esvit_pl.optim.torch.load`` would otherwise reach through a module into another library).
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from omegaconf import OmegaConf

from esvit_pl.configs.near_match import near

# Whole names, or packages if the name ends with a dot. Commands, benchmarks and file formats are not for configs.
_BUILT_IN = (
    "esvit_pl.augment.",
    "esvit_pl.backbones.",
    "esvit_pl.callbacks.",
    "esvit_pl.data.",
    "esvit_pl.datasets.",
    "esvit_pl.evaluation.",
    "esvit_pl.heads.",
    "esvit_pl.loggers.MetricsCSV",
    "esvit_pl.losses.",
    "esvit_pl.metrics.",
    "esvit_pl.modules.",
    "esvit_pl.network.",
    "esvit_pl.objectives.",
    "esvit_pl.optim.",
    "esvit_pl.schedules.",
    "pytorch_lightning.Trainer",
    "pytorch_lightning.callbacks.",
    "pytorch_lightning.loggers.",
    "pytorch_lightning.plugins.environments.",
    "pytorch_lightning.profilers.",
    "pytorch_lightning.strategies.",
    "torch.optim.",
)
# In a trusted package, but they would call any function that a config names, or write a file of any name.
_DENIED = (
    "pytorch_lightning.callbacks.LambdaCallback",
    "pytorch_lightning.callbacks.lambda_function.",
    "esvit_pl.datasets.checking.",
)
# Packages in which objects that a trusted package re-exports are defined.
_HOMES = ("lightning_fabric.plugins.environments.",)
# What Hydra itself builds: the standard library's log handlers, and our two callbacks.
_OF_HYDRA = ("logging.", "esvit_pl.configs.run_folder.RunFolders", "esvit_pl.configs.sweep.SweepTable")
VARIABLE = "ESVIT_TRUSTED_TARGETS"
PLUGINS = "ESVIT_PLUGINS"

_allowed: list[str] = []


def allow(prefix: str) -> None:
    """Trust targets of your own, from code: ``allow("my_project.callbacks.")``; without the last dot, one exact name.

    From the shell: ``ESVIT_TRUSTED_TARGETS=my_project.callbacks.,other.Thing``. A config cannot extend the list.
    """
    if not prefix.strip(".") or prefix.startswith("."):
        raise ValueError(f"allow wants a dotted name such as 'my_project.callbacks.', got {prefix!r}")
    if prefix not in _allowed:
        _allowed.append(prefix)


def import_plugins() -> None:
    """Import the packages that ``ESVIT_PLUGINS=my_project,other`` names, so that they can `allow` and register parts.

    Raises:
        ValueError: there is no such package.
    """
    for name in own_packages():
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise  # the package is there; something that it imports is not
            raise ValueError(
                f"{PLUGINS} names {name!r}, and there is no such package; install it, or put its folder on PYTHONPATH"
            ) from error


def own_packages() -> list[str]:
    """What ``ESVIT_PLUGINS`` names."""
    return _listed(PLUGINS)


def trusted_by_user() -> tuple[str, ...]:
    """What ``ESVIT_TRUSTED_TARGETS`` and `allow` name."""
    return (*_listed(VARIABLE), *_allowed)


def _listed(variable: str) -> list[str]:
    return [name for part in os.environ.get(variable, "").split(",") if (name := part.strip())]


def trusted() -> tuple[str, ...]:
    """Every trusted prefix: built in, and `trusted_by_user`."""
    return (*_BUILT_IN, *trusted_by_user())


def trusted_patterns() -> list[str]:
    """The same list as Hydra 1.4 writes it (``package.*``), with what conf/hydra itself names."""
    return [f"{prefix}*" if prefix.endswith(".") else prefix for prefix in (*trusted(), *_OF_HYDRA)]


def hydra_has_whitelist() -> bool:
    """Whether Hydra takes a list of allowed targets: 1.4 does, 1.3 does not."""
    import hydra

    return "execution_whitelist" in inspect.signature(hydra.main).parameters


def check(tree: Any, key: str = "") -> None:
    """Raise a ValueError that names the key and the target of the first ``_target_`` that is not trusted.

    Args:
        tree: DictConfig, dict or list; interpolations are resolved first.
        key: dotted name of the tree in the whole config, for the message.
    """
    if OmegaConf.is_config(tree):
        tree = OmegaConf.to_container(tree, resolve=True)
    for path, target in _targets(tree, key):
        if not isinstance(target, str):
            raise ValueError(f"{path}._target_ must be a dotted name, got {type(target).__name__} {target!r}")
        check_target(path, target)


def build(node: Any, *args: Any, key: str = "", **kwargs: Any) -> Any:
    """``hydra.utils.instantiate`` after `check` of the whole tree.

    Args:
        node: the config node. ``args`` and ``kwargs`` go to its target; configs among them are checked too.
        key: the node's dotted name in the config, which is put in front of the target's error messages.

    Raises:
        ValueError: a target is not trusted, does not exist, or refuses its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if not key and OmegaConf.is_config(node):
        key = node._get_full_key(None)
    check(node, key)
    for name, value in kwargs.items():
        if OmegaConf.is_config(value) or isinstance(value, dict | list):
            check(value, f"{key}.{name}" if key else name)
    if hydra_has_whitelist():
        kwargs["_execution_whitelist_"] = trusted_patterns()
    try:
        return instantiate(node, *args, **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | TypeError | NotImplementedError | FileNotFoundError | ModuleNotFoundError):
            raise ValueError(at(key, cause, node) if key else _without_python(str(cause))) from cause
        raise


def _without_python(message: str) -> str:
    """Python's own words about arguments, in plain ones.

    >>> _without_python("Swin.__init__() got an unexpected keyword argument 'depth'")
    'depth is not a setting of Swin'
    """
    match = re.match(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", message)
    return f"{match[2]} is not a setting of {match[1]}" if match else message


def defaults(tree: Any) -> dict[str, Any]:
    """{dotted key: default} of every argument of every ``_target_`` in a tree, as its signature has it.

    Raises:
        ValueError: a target is not trusted, or does not exist.
    """
    check(tree)
    found: dict[str, Any] = {}
    for path, target in _targets(tree, ""):
        parameters = inspect.signature(_resolve(path, target)).parameters.values()
        found |= {f"{path}.{each.name}": each.default for each in parameters if each.default is not each.empty}
    return found


def at(key: str, error: BaseException | str, settings: Iterable[Any] = ()) -> str:
    """The message of a part, with its settings called as they are typed in the config, or the config's key in front.

    >>> at("datamodule", "batch_size must be 1 or more, got 0", ["batch_size"])
    'datamodule.batch_size must be 1 or more, got 0'
    >>> at("evaluation.knn", "k=20 neighbours, and the bank holds 17 images")
    'evaluation.knn.k=20 neighbours, and the bank holds 17 images'
    """
    message = _without_python(str(error))
    if f"{key}." in message or message.startswith(f"{key}="):
        return message
    names = "|".join(re.escape(str(name)) for name in settings) or r"\A[a-z]\w*"
    named = re.sub(rf"(?<![\w.])(?P<name>{names})(?==)", rf"{key}.\g<name>", message)
    if named != message:
        return named
    begins = re.match(rf"({names})(?= )", message)
    return f"{key}.{message}" if begins and settings else f"{key}: {message}"


def _targets(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield path or "(the top of the config)", tree["_target_"]
        for name, child in tree.items():
            yield from _targets(child, f"{path}.{name}" if path else str(name))
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        for index, child in enumerate(tree):
            yield from _targets(child, f"{path}[{index}]")


def check_target(path: str, target: str, prefixes: Sequence[str] | None = None) -> None:
    """Raise a ValueError unless the name has one of these prefixes (`trusted`) and leads to code of such a package."""
    prefixes = trusted() if prefixes is None else prefixes
    if not _covered(target, prefixes) or _covered(target, _DENIED):
        raise ValueError(
            f"{path}: _target_ {target!r} is not on the list of what a config may build (trusted() shows the list). "
            f"If the code is yours, say so with {VARIABLE}={target} in the environment, or let its package call "
            f"esvit_pl.configs.instantiation.allow({target!r}) and name the package in {PLUGINS}"
        )
    thing = _resolve(path, target)
    home = f"{getattr(thing, '__module__', '')}."
    homes = [prefix for prefix in prefixes if prefix.endswith(".")]
    if target in prefixes:  # a whole name may come from deeper inside its library; other names may not come from there
        homes.append(f"{target.partition('.')[0]}.")
    if not callable(thing) or not home.startswith((*homes, *_HOMES)):
        raise ValueError(
            f"{path}: _target_ {target!r} leads to something ({type(thing).__name__}) that is not defined in a "
            "trusted package; name a class or a function, by the module or package that offers it"
        )


def _covered(name: str, prefixes: Sequence[str]) -> bool:
    return any(name.startswith(prefix) if prefix.endswith(".") else name == prefix for prefix in prefixes)


def _resolve(path: str, target: str) -> Any:
    """The class or function ``module.name``. Methods are refused: ``load_from_checkpoint`` is one of every module's."""
    module_name, _, name = target.rpartition(".")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise ValueError(f"{path}: _target_ {target!r} does not exist: there is no module {error.name!r}") from error
    if not hasattr(module, name):
        found = near(name, dir(module))
        hint = f"; did you mean {' or '.join(found)}?" if found else ""
        raise ValueError(f"{path}: _target_ {target!r} does not exist: {module_name} has no {name!r}{hint}")
    return getattr(module, name)
