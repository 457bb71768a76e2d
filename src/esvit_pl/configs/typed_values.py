"""Refuses values of a wrong type anywhere in a config, before anything is built or torch is loaded.

A value is compared with the annotation of the argument that it becomes (configs/signatures.py), or, where there is
none, with the default that it replaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from esvit_pl.configs.near_match import near
from esvit_pl.configs.signatures import ANY, Kinds, Signature, of_default, signature

_WORDS = {
    "int": ("whole number", 10),
    "float": ("number", 0.1),
    "bool": ("true or false", True),
    "str": ("word", "NAME"),
    "list": ("list", [1, 2]),
    "dict": ("group of settings", None),
    "none": ("null", None),
}
_OF_HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
_GROUP, _NULL = Kinds(frozenset({"dict"})), Kinds(frozenset({"none"}))
_UNSAID = {  # settings that no target takes, and whose default does not say what else they may be
    "dry_run": Kinds(frozenset({"bool"}), options=("timed",)),
    "evaluation.baselines": Kinds(frozenset({"bool"}), options=("auto",)),
    "backbones": Kinds(frozenset({"list"}), items=Kinds(frozenset({"str"}))),
    "batch_size": Kinds(frozenset({"int"})),
    "columns": Kinds(frozenset({"list", "str"})),
    "resume.allow": Kinds(frozenset({"list", "str"})),
    "ckpt_path": Kinds(frozenset({"str"})),
    "init_from": Kinds(frozenset({"str"})),
    "optimized_metric": Kinds(frozenset({"str"})),
    "peak_gbytes": Kinds(frozenset({"float"})),
    "peak_tflops": Kinds(frozenset({"float"})),
    "seed": Kinds(frozenset({"int"})),
    "size": Kinds(frozenset({"int"})),
}
_UNSAID_IN = {  # the same, of one command alone
    "evaluate": {
        "ckpt_path": Kinds(frozenset({"str", "list", "dict"})),
        "cache": Kinds(frozenset({"str"})),
        "groups": Kinds(frozenset({"str"})),
    },
    "knn": {"cache": Kinds(frozenset({"str"}))},
    "neighbours": {
        "embedded": Kinds(frozenset({"str"})),
        "query": Kinds(frozenset({"str", "list"})),
        "place": Kinds(frozenset({"list"})),
        "table": Kinds(frozenset({"str"})),
    },
    "dense": {"evaluation.probes": Kinds(frozenset({"list"}), items=Kinds(frozenset({"str"})))},
    "visualize": {
        "ckpt_path": Kinds(frozenset({"str", "list", "dict"})),
        "image": Kinds(frozenset({"str", "list"})),
        "image2": Kinds(frozenset({"str"})),
        "query": Kinds(frozenset({"list"})),
        "draw.metrics": Kinds(frozenset({"list", "str"})),
        "draw.runs": Kinds(frozenset({"list", "dict", "str"})),
        "draw.side": Kinds(frozenset({"int"})),
    },
}
_BOOLEANS = "on, off, yes, no, true and false"


def problems(
    tree: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    of_others: Mapping[str, str] | None = None,
    command: str = "",
) -> dict[str, str]:
    """Key -> a sentence, for values of `tree` of a wrong type, arguments that do not exist, and names that are no text.

    Args:
        tree: a resolved config as plain Python; ``???`` is left alone.
        defaults: the same config before anybody changed a value. What is equal in both is not looked at.
        of_others: key -> the setting whose value it takes over; the sentence names that one.
        command: whose config it is.

    >>> problems({"optimizer": {"lr": "abc"}}, {"optimizer": {"lr": 0.0005}})
    {'optimizer.lr': 'optimizer.lr=abc is no number; write one such as optimizer.lr=0.0005'}
    """
    unsaid = _UNSAID | _UNSAID_IN.get(command, {})
    return dict(_walk(tree, defaults or {}, "", of_others or {}, unsaid))


def _walk(
    node: Mapping[Any, Any], defaults: Any, path: str, of_others: Mapping[str, str], unsaid: Mapping[str, Kinds]
) -> Iterator[tuple[str, str]]:
    defaults = defaults if isinstance(defaults, Mapping) else {}
    called: Signature | None = None
    for name, value in node.items():
        key = f"{path}.{name}" if path else str(name)
        if not isinstance(name, str):
            yield key, _wrong_name(path, name, value)
            continue
        default = defaults.get(name)
        if name in _OF_HYDRA or value == "???" or (value == default and type(value) is type(default)):
            continue
        if called is None and isinstance(target := node.get("_target_"), str):
            called = signature(target)
        if called is not None and not called.is_open and name not in called.arguments:
            yield key, _no_such_argument(path, name, value, called)
            continue
        if isinstance(value, Mapping) and ("_target_" in value or isinstance(default, Mapping)):
            yield from _walk(value, default, key, of_others, unsaid)
            continue
        kinds = called.arguments.get(name, ANY) if called is not None else ANY
        kinds = unsaid.get(key, kinds)
        if not kinds.known:
            if isinstance(default, str) and default.startswith("${"):
                continue  # another setting's value, of which this file knows no kind
            kinds = (_GROUP if isinstance(default, Mapping) and default else of_default(default)) | _NULL
        if not fits(value, kinds) and not (value is None and default is None):
            yield key, sentence(of_others.get(key, key), value, kinds, None if key in of_others else default)
        elif isinstance(value, Mapping):
            yield from _walk(value, default, key, of_others, unsaid)


def fits(value: Any, kinds: Kinds) -> bool:
    """Whether a value is of one of these kinds.

    >>> fits(3, of_default(0.5)), fits("3", of_default(0.5)), fits([3, "a"], of_default([1]))
    (True, False, False)
    """
    if not kinds.known or any(value == option and type(value) is type(option) for option in kinds.options):
        return True
    match value:
        case None:
            return "none" in kinds.names
        case bool():
            return "bool" in kinds.names
        case int():
            return bool(kinds.names & {"int", "float"})
        case float():
            return "float" in kinds.names and isfinite(value)
        case str():
            return "str" in kinds.names
        case list() | tuple():
            return "list" in kinds.names and (kinds.items is None or all(fits(item, kinds.items) for item in value))
    return "dict" in kinds.names or not isinstance(value, Mapping)


def sentence(key: str, value: Any, kinds: Kinds, default: Any = None) -> str:
    """What came, what is wanted, and an example."""
    given = f"{key}={_typed(value)}"
    if kinds.options and not kinds.names - {"none"}:
        return f"{given} is not one of {', '.join(dict.fromkeys(map(str, kinds.options)))}"
    if isinstance(value, list | tuple) and "list" in kinds.names and kinds.items is not None:
        wrong, items = next(item for item in value if not fits(item, kinds.items)), kinds.items
        single = "[" + _example(items, None if isinstance(default, list) else default) + "]"
        example = _typed(default) if isinstance(default, list) and default else single
        return f"{given} holds {_typed(wrong)}, which is {_is_no(items)}; write a list such as {key}={example}"
    if kinds.names <= {"str", "none"} and isinstance(value, int | float):
        what = "true or false" if isinstance(value, bool) else "a number"
        return f"{given} is read as {what}; text stands in quotes: \"{key}='{_typed(value)}'\""
    if kinds.names <= {"dict", "none"}:
        inside = [f"{key}.{name}=..." for name in default] if isinstance(default, Mapping) else []
        inside = [setting for setting in inside if "._" not in setting]
        return f"{given}: {key} is a group of settings; write {' or '.join(inside[:3]) or f'{key}.NAME=VALUE'}"
    if isinstance(value, str) and _is_number(value):
        return f"{given} is text, since it stands in quotes; write {key}={value}"
    return f"{given} is {_is_no(kinds)}; write one such as {key}={_example(kinds, default)}"


def _is_no(kinds: Kinds) -> str:
    """``no number``, or ``neither a number nor a list``."""
    names = [name for name in _WORDS if name in kinds.names and not (name == "int" and "float" in kinds.names)]
    names = [name for name in names if name != "none"] or names
    words = [word for name in names for word in (("true", "false") if name == "bool" else (_WORDS[name][0],))]
    words += [_typed(option) for option in kinds.options]
    if len(words) == 1:
        return f"no {words[0]}"
    named = [f"a {word}" if word in ("number", "whole number", "word", "list") else word for word in words]
    return f"neither {', '.join(named[:-1])} nor {named[-1]}"


def _example(kinds: Kinds, default: Any) -> str:
    """The default, if there is one; else a value of the first kind."""
    if default is not None and not isinstance(default, Mapping):
        return _typed(default)
    if kinds.items is not None and kinds.names <= {"list", "none"}:
        return f"[{_example(kinds.items, None)}]"
    return next((_typed(example) for name, (_, example) in _WORDS.items() if name in kinds.names), "null")


def _typed(value: Any) -> str:
    """As on the command line."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case list() | tuple():
            return f"[{','.join(map(_typed, value))}]"
        case Mapping():
            return "{" + ",".join(f"{name}:{_typed(item)}" for name, item in value.items()) + "}"
        case str() if _is_number(value):
            return f"'{value}'"
    return str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _wrong_name(path: str, name: Any, value: Any) -> str:
    where = f"{path}: a setting" if path else "a setting"
    if isinstance(name, bool):
        return (
            f"{where} is called {str(name).lower()} (its value is {_typed(value)}); YAML reads {_BOOLEANS} as true or "
            "false, so such a name stands in quotes: 'off': ..."
        )
    kind = "number" if isinstance(name, int | float) else type(name).__name__
    return f"{where} is called {name}, which YAML reads as a {kind}; a name stands in quotes: '{name}': ..."


def _no_such_argument(path: str, name: str, value: Any, called: Signature) -> str:
    given, found = f"{path}.{name}={_typed(value)}", near(name, called.arguments)
    if found:
        return f"{given}: did you mean {' or '.join(f'{path}.{other}={_typed(value)}' for other in found)}?"
    return f"{given}: {called.name} has no setting {name}; it has {', '.join(called.arguments)}"
