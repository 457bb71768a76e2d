"""Suggestions for mistyped settings. Hydra only says that a name is wrong; this file says which names are similar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher


@dataclass(frozen=True)
class ConfigSpace:
    """The names that a command accepts.

    Attributes:
        groups: group -> its options, e.g. ``{"backbone": ["swin_tiny_w7", ...]}``.
        keys: dotted names of every node of the composed config, e.g. ``trainer.max_epochs``.
        unchosen: groups without a chosen option, which have no keys yet.

    >>> space = ConfigSpace(keys=["trainer.max_epochs", "optimizer.lr"])
    >>> explain_setting("trainer.max_epoch=3", space)
    'trainer.max_epoch: did you mean trainer.max_epochs?'
    """

    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    keys: Sequence[str] = ()
    unchosen: Sequence[str] = ()


_LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm")
# Settings that need a plugin from the extra `sweep` -> the group and option that the plugin adds to Hydra.
_PLUGINS = {
    **{f"hydra/launcher={name}": ("hydra/launcher", name) for name in _LAUNCHERS},
    "hydra/sweeper=optuna": ("hydra/sweeper", "optuna"),
    "hparams_search=optuna": ("hydra/sweeper", "optuna"),
}


def near(word: str, options: Iterable[str]) -> list[str]:
    """The options most similar to ``word``, best first: up to three of about the same similarity, or none."""
    score = {option: SequenceMatcher(None, option.lower(), word.lower()).ratio() for option in options}
    best = max(score.values(), default=0.0)
    found = [option for option, value in score.items() if value >= max(0.6, best - 0.06)]
    return sorted(found, key=lambda option: -score[option])[:3]


def near_keys(key: str, space: ConfigSpace) -> list[str]:
    """Names similar to ``key``. A right name in a wrong place counts: ``max_epochs`` finds ``trainer.max_epochs``."""
    last = key.rpartition(".")[2]
    moved = sorted(
        (known for known in space.keys if known.rpartition(".")[2] == last), key=lambda known: known.count(".")
    )
    return moved[:3] or near(key, dict.fromkeys([*space.groups, *space.keys]))


def explain_setting(setting: str, space: ConfigSpace) -> str | None:
    """One line about a wrong ``key=value`` of the command line; None if nothing looks wrong."""
    if setting.startswith("~"):
        key = setting[1:].partition("=")[0]
        known = key in space.keys or key in space.groups
        return None if known else _did_you_mean(f"~{key}", [f"~{name}" for name in near_keys(key, space)])
    group, option = _PLUGINS.get(setting, ("", ""))
    if option not in space.groups.get(group, [option]):
        return f"{setting}: a plugin of Hydra is not installed; pip install 'esvit_pl[sweep]'"
    appended = setting.startswith("+")
    key, equals, value = setting.lstrip("+").partition("=")
    key = key.partition("@")[0]  # `group@package=option`
    if not equals:
        return _explain_bare_word(key, space)
    if key in space.groups:
        return _explain_option(key, value, space.groups[key])
    group = key.partition(".")[0]
    if appended or key in space.keys or group == "hydra":  # Hydra's own settings are not in the tree
        return None
    if group in space.unchosen:
        return f"{key}: nothing is chosen for {group} yet; add {group}= one of {', '.join(space.groups[group])}"
    return _did_you_mean(key, near_keys(key, space))


def explain_flag(flag: str, flags: Sequence[str]) -> str | None:
    """One line about a word with leading dashes that is not a flag; None for a flag that exists."""
    name, equals, _ = flag.partition("=")
    if name in flags:
        return None
    if equals and name.startswith("--"):
        return f"{flag}: settings have no dashes; write {flag.lstrip('-')}"
    return _did_you_mean(name, near(name, flags))


def _explain_bare_word(word: str, space: ConfigSpace) -> str | None:
    choices = [f"{group}={option}" for group, options in space.groups.items() for option in options if option == word]
    if choices:
        return f"{word}: write {' or '.join(choices)}"
    if word in space.keys or word in space.groups:
        return f"{word}: needs a value; write {word}=..."
    return f"{word}: not of the form name=value"


def _explain_option(group: str, value: str, options: Sequence[str]) -> str | None:
    for option in _values(value):
        if option not in options and option != "null":
            found = near(option, options)
            return _did_you_mean(f"{group}={option}", [f"{group}={name}" for name in found])
    return None


def _values(value: str) -> Iterator[str]:
    """The single options in ``a``, in a sweep ``a,b`` and in a list ``[a,b]``."""
    for part in value.strip("[]").split(","):
        if option := part.strip().strip("'\""):
            yield option


def _did_you_mean(given: str, found: Sequence[str]) -> str | None:
    return f"{given}: did you mean {' or '.join(found)}?" if found else None
