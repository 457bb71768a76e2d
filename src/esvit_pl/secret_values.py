"""Values that open an account: recognised by their names or their looks, and left out where others may read them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

STARS = "***"
_WORDS = (
    r"(?:(?:api|access|private|secret)_?key|auth(?:orization)?|credential|pass(?:word|wd|phrase|code)|secret|token)s?"
)
_NAME = re.compile(rf"(?i)(?:^|[._-]){_WORDS}$")
"""Last names of settings, and names of variables, whose value is one, whatever it looks like."""
_PAIR = re.compile(rf"(?i)(?<![a-z0-9])({_WORDS})(['\"]?\s*[:=]\s*['\"]?)(?!\$\{{)([^\s,;&}}\]'\"]+)")
"""Such a name with its value within a text: ``?token=abc``, ``{api_key: abc}``."""
_COUNT = re.compile(r"(?i)tokens?$")
"""A number under this name counts something."""
_LOOK = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_\w{30,}|github_pat_\w{30,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}"
    r"|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)|(?<![\w/.-])[0-9a-f]{40}(?![\w/.-])"
    r"|(?<=://)[^\s/:@]+:[^\s/@]+(?=@)|(?<=Bearer )\S+"
)
"""Tokens of the usual services, JSON web tokens, keys of 40 hexadecimal digits (in a path they are a version),
user:password in an address."""
_REFERENCE = re.compile(r"\$\{[\w.]+(:\w+)?\}|\*\*\*")
_SHORTEST = 8
"""Values of variables that are shorter may stand in other texts by chance."""

Instead = Callable[[Sequence[str], str | None], str]
"""(names of the setting, from the outermost; variable of the environment that has this value) -> what is written."""


def starred(value: Any, name: str = "") -> Any:
    """A value without what opens an account, at any depth; interpolations (``${oc.env:TOKEN}``) stay.

    >>> starred({"project": "a", "api_key": "abc", "url": "https://me:abc@a.example"})
    {'project': 'a', 'api_key': '***', 'url': 'https://***@a.example'}
    >>> starred("logger.wandb.token=abc")
    'logger.wandb.token=***'
    """
    return _without(value, [name], lambda path, variable: STARS, _variables())


def named(config: Any) -> Any:
    """A config in which the environment is asked for what opens an account, at any depth.

    >>> named({"logger": {"wandb": {"project": "a", "api_key": "abc"}}})
    {'logger': {'wandb': {'project': 'a', 'api_key': '${oc.env:LOGGER_WANDB_API_KEY}'}}}
    """
    return _without(config, [], _asked, _variables())


def is_secret(name: str) -> bool:
    """Whether a setting or a variable of this name holds what opens an account."""
    return _NAME.search(name) is not None


def _variables() -> dict[str, str]:
    """{value: variable} of those in the environment that hold a secret, the longest first."""
    found = {value: name for name, value in os.environ.items() if is_secret(name) and len(value) >= _SHORTEST}
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


def _asked(path: Sequence[str], variable: str | None) -> str:
    name = variable or re.sub(r"\W+", "_", "_".join(path)).strip("_").upper()
    return f"${{oc.env:{name or 'SECRET'}}}"


def _without(value: Any, path: Sequence[str], instead: Instead, variables: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(item, [*path, str(key)], instead, variables) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without(item, path, instead, variables) for item in value]
    secret = bool(path) and is_secret(path[-1])
    if isinstance(value, int | float) and not isinstance(value, bool):
        return instead(path, None) if secret and not _COUNT.search(path[-1]) else value
    if not isinstance(value, str):
        return value
    for content, variable in variables.items():
        value = value.replace(content, instead(path, variable))
    key, equals, rest = value.partition("=")
    if _REFERENCE.fullmatch(value) or (equals and _REFERENCE.fullmatch(rest)):
        return value
    if secret:
        return instead(path, None)
    if equals and is_secret(key) and not _counts(key, rest):  # a word of a command line
        return f"{key}={instead([*path, key], None)}"
    return _LOOK.sub(instead(path, None), _PAIR.sub(partial(_pair, path, instead), value))


def _pair(path: Sequence[str], instead: Instead, found: re.Match[str]) -> str:
    name, between, value = found.groups()
    return found[0] if _counts(name, value) else f"{name}{between}{instead([*path, name], None)}"


def _counts(name: str, value: str) -> bool:
    return _COUNT.search(name) is not None and value.replace(".", "").isdigit()
