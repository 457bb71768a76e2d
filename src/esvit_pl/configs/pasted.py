"""The words of a command line before Hydra reads them: what the shell or a web page made of them.

Flags may stand anywhere. What cannot be put right without guessing is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from esvit_pl.configs.quoting import names_a_file, quoted

_QUOTES = "“”„‟«»‘’‚‛"
_DASHES = "‐‑‒–—―−"
_SPACES = "\u00a0\u2002\u2003\u2007\u2009\u202f\u3000\u200b\u200c\u200d\u2060\ufeff"
_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")


def flags_first(argv: Sequence[str]) -> list[str]:
    """argparse refuses words behind a flag that itself stands behind words.

    >>> flags_first(["seed=1", "--cfg", "job", "seed=2"])
    ['--cfg', 'job', 'seed=1', 'seed=2']
    """
    flags: list[str] = []
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        (flags if word.startswith("-") else words).append(word)
        if (word in _WITH_VALUE and rest) or (word in ("--info", "-i") and rest and "=" not in rest[0]):
            flags.append(rest.pop(0))
    return [*flags, *words]


def settings_in(argv: Sequence[str]) -> list[str]:
    """The words that are no flags, nor values of flags."""
    ordered = flags_first(argv)
    flags = max((i + 1 + (word in _WITH_VALUE) for i, word in enumerate(ordered) if word.startswith("-")), default=0)
    return ordered[flags:]


def bare_words_as_setting(argv: Sequence[str], key: str) -> list[str]:
    """Join the words of a command line that are neither settings nor flags into one setting.

    A word with ``=`` is a setting, unless it names something that exists: ``logs/lr=0.1``.

    >>> bare_words_as_setting(["logs/", "more/"], "folders")
    ["folders=['logs/','more/']"]
    """
    settings = settings_in(argv)
    flags = flags_first(argv)[: len(argv) - len(settings)]
    bare = [word for word in settings if ("=" not in word or names_a_file(word)) and not word.startswith("~")]
    others = [*flags, *(word for word in settings if word not in bare)]
    return [*others, f"{key}=[{','.join(map(quoted, bare))}]"] if bare else others


def null_means_none(argv: Sequence[str], config_package: str) -> list[str]:
    """Replace ``logger=null``, as templates for Lightning and Hydra write it, by the option ``logger=none``."""
    options = files(config_package)
    groups = [word.removesuffix("=null") if word.endswith("=null") else "" for word in argv]
    has_none = [bool(group) and options.joinpath(group, "none.yaml").is_file() for group in groups]
    return [f"{group}=none" if none else word for word, group, none in zip(argv, groups, has_none, strict=True)]


def given_twice(settings: Sequence[str]) -> list[str]:
    """A line for each setting that stands in the words more than once: the last one counts.

    >>> given_twice(["seed=1", "seed=2"])
    ['seed is given twice; seed=2 counts']
    """
    last: dict[str, str] = {}
    repeated: dict[str, None] = {}
    for word in settings:
        key = word.lstrip("+").partition("=")[0]
        if key in last:
            repeated[key] = None
        last[key] = word
    return [f"{key} is given twice; {last[key]} counts" for key in repeated if last[key].partition("=")[1]]


def explain(argv: Sequence[str]) -> str | None:
    """A sentence about the first word that a web page, a word processor or a space has spoilt; None if there is none.

    >>> explain(["seed", "=", "3"])
    'seed = 3: the shell reads these as several words; write seed=3 without spaces'
    """
    for word in argv:
        if sentence := _spoilt(word):
            return sentence
    return _spaces_around_the_sign(argv)


def _spoilt(word: str) -> str | None:
    key, equals, value = word.partition("=")
    if word[:1] and word[0] in _DASHES:
        dashes = len(word) - len(word.lstrip(_DASHES + "-"))
        flag = word.lstrip(_DASHES + "-")
        again = f"{'-' if len(flag) < 3 and dashes == 1 else '--'}{flag}"
        return f"{word}: begins with a dash of printed text ({_code(word[0])}); write {again}"
    if equals and key != key.strip(" "):
        return f"{word}: has a space beside its name; write {key.strip()}={value.strip()}"
    if "＝" in key:
        return f"{word}: holds a wide equals sign ({_code('＝')}); write {word.replace('＝', '=', 1)}"
    odd = next((sign for sign in (key if equals else word) if sign in _SPACES), None)
    odd = odd or next((sign for sign in (value[:1], value[-1:]) if sign and sign in _SPACES), None)
    if odd is not None:
        cleaned = "".join(sign for sign in key if sign not in _SPACES) + equals + value.strip(_SPACES)
        return f"{word}: holds an invisible sign of printed text ({_code(odd)}); write {cleaned}"
    if value[:1] and (value[0] in _QUOTES or value[-1] in _QUOTES):
        inside = value.strip(_QUOTES)
        again = f'"{key}={inside}"' if value[0] not in _QUOTES or value[-1] not in _QUOTES else f"{key}={inside}"
        sign = value[0] if value[0] in _QUOTES else value[-1]
        return (
            f"{word}: {sign} is a quote of printed text ({_code(sign)}), which the shell does not know; write {again}"
        )
    if value[:1] and value[0] in _DASHES and value[1:2].isdigit():
        return f"{word}: {value[0]} is a dash of printed text ({_code(value[0])}); write {key}=-{value[1:]}"
    return None


def _spaces_around_the_sign(argv: Sequence[str]) -> str | None:
    for index, word in enumerate(argv):
        after = argv[index + 1] if index + 1 < len(argv) else ""
        before = argv[index - 1] if index else ""
        if set(word) == {"="} and before and after:
            key, typed, value = before, f"{before} {word} {after}", after
        elif word.endswith("=") and word.count("=") == 1 and word != "=" and _is_bare(after):
            key, typed, value = word[:-1], f"{word} {after}", after
        elif word.startswith("=") and len(word) > 1 and _is_bare(before):
            key, typed, value = before, f"{before} {word}", word[1:]
        elif word.endswith(":") and word[:-1].replace(".", "").isidentifier() and _is_bare(after):
            key, typed, value = word[:-1], f"{word} {after}", after
        else:
            continue
        return f"{typed}: the shell reads these as several words; write {key}={value} without spaces"
    return None


def _is_bare(word: str) -> bool:
    return bool(word) and "=" not in word and not word.startswith("-")


def _code(sign: str) -> str:
    return f"U+{ord(sign):04X}"
