"""The config that a checkpoint keeps: whoever reads it learns no secret, and a resume learns what the training was."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import pbkdf2_hmac
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from esvit_pl.runs.folder import by_name
from esvit_pl.secret_values import is_secret, named

DIGESTS = "digests"
"""Where a kept config has the digests of texts from the environment that enter the training, by dotted names."""


def kept(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain Python: secrets by name, and from the environment numbers alone, texts by name.

    A resume must notice that a setting has another value than before. So there are digests of what is named and enters
    the training, but not of secrets.
    """
    from esvit_pl.checkpoints.resuming import flat, mattering

    values: Any = OmegaConf.to_container(cfg, resolve=True)
    texts = _with_numbers(by_name(cfg), values)
    now, asked = dict(flat(values)), dict(flat(texts))
    config = shown(cfg)
    digests = {
        key: digest(key, now[key])
        for key, text in mattering(config).items()
        if text != now.get(key, text) and not _is_secret(key, str(asked[key]), typed=text != asked[key])
    }
    return {**config, DIGESTS: digests} if digests else config


def shown(cfg: DictConfig) -> dict[str, Any]:
    """The same without digests, also of a node of a config."""
    return cast(dict[str, Any], named(_with_numbers(by_name(cfg), OmegaConf.to_container(cfg, resolve=True))))


def recovered(was: Mapping[str, Any], now: Mapping[str, Any], named_now: Mapping[str, Any]) -> dict[str, Any]:
    """A kept config with values in place of names, wherever these are the present values.

    Args:
        was: `kept` of a training.
        now: the resolved config of this one.
        named_now: `kept` of this one.
    """
    from esvit_pl.checkpoints.resuming import flat

    values, names, digests = dict(flat(now)), dict(flat(named_now)), was.get(DIGESTS, {})

    def value(key: str, text: Any) -> Any:
        if key not in values:
            return text
        same = digests[key] == digest(key, values[key]) if key in digests else text == names.get(key)
        return values[key] if same else text

    def of(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        return {
            name: of(node, f"{prefix}{name}.") if isinstance(node, Mapping) else value(f"{prefix}{name}", node)
            for name, node in tree.items()
        }

    return of({name: node for name, node in was.items() if name != DIGESTS})


def digest(key: str, value: Any) -> str:
    """What a value is compared by without being told; slow on purpose, so that nobody tries a million of them."""
    return pbkdf2_hmac("sha256", json.dumps(value).encode(), key.encode(), 200_000).hex()


def _is_secret(key: str, text: str, *, typed: bool) -> bool:
    """Whether a named value opens an account, and not only stands under such a name (``backbone.mask_token``)."""
    if typed:
        return key.startswith(("callbacks.", "dataset."))  # the others compute with numbers and words
    return any(map(is_secret, re.findall(r"oc\.env:(\w+)", text)))


def _with_numbers(text: Any, value: Any) -> Any:
    """`text`, with those values that are numbers or lists of numbers."""
    if isinstance(text, dict) and isinstance(value, dict):
        return {name: _with_numbers(node, value.get(name)) for name, node in text.items()}
    if isinstance(text, list) and isinstance(value, list):
        return [_with_numbers(*pair) for pair in zip(text, value, strict=True)]
    return text if _has_text(value) else value


def _has_text(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_text, value))
    return not (value is None or isinstance(value, bool | int | float))
