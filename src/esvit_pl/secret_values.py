"""Values that open an account: recognised by their name or their look, and starred where others may read them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

STARS = "***"
_NAME = re.compile(r"(?i)(^|[._-])(api_?key|auth|credentials?|passw(or)?d|secret|token)s?$")
"""Last names of settings whose value is one, whatever it looks like."""
_LOOK = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_\w{30,}|github_pat_\w{30,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}"
    r"|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|[0-9a-f]{40}\b)|(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"
)
"""Tokens of the usual services, JSON web tokens, keys of 40 hexadecimal digits, and user:password in an address."""


def starred(value: Any, name: str = "") -> Any:
    """A value without what opens an account, at any depth; interpolations (``${oc.env:TOKEN}``) stay.

    >>> starred({"project": "a", "api_key": "abc", "url": "https://me:abc@a.example"})
    {'project': 'a', 'api_key': '***', 'url': 'https://***@a.example'}
    >>> starred("logger.wandb.token=abc")
    'logger.wandb.token=***'
    """
    if isinstance(value, Mapping):
        return {key: starred(item, str(key)) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [starred(item, name) for item in value]
    if not isinstance(value, str):
        return value
    if _NAME.search(name):
        return value if value.startswith("${") else STARS
    key, equals, rest = value.partition("=")
    if equals and _NAME.search(key):  # a word of a command line
        return value if rest.startswith("${") else f"{key}={STARS}"
    return _LOOK.sub(STARS, value)
