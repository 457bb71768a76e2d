"""Find the networks in what a file holds, whatever wraps them and whatever they are called.

    {"state_dict": {"module.encoder_q.conv1.weight": w}, "epoch": 3}   ->   student: {"conv1.weight": w}

One rule serves all: names and the dicts around them become one dotted name, wrappers without a meaning vanish from it,
and what stands before a backbone's own names says whose backbone it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from esvit_pl.checkpoints.checkpoint import State, part

TEACHERS = ("teacher", "ema", "momentum", "target", "k", "key")
STUDENTS = ("student", "online", "base", "q", "query")
"""Words that say whose backbone it is: of MoCo (``encoder_q``, ``base_encoder``), BYOL (``online_network``), timm
(``state_dict_ema``), and of everybody who calls them teacher and student."""
_WRAPPER = re.compile(r"\b(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_NO_WEIGHTS = re.compile(r"(optim|loss|.*loss\b|sched|lr_|scaler|callbacks|loops|rng|.*_states)")


def flattened(content: object, prefix: str = "") -> State:
    """Every tensor in nested dicts, by its dotted name without wrappers.

    >>> from torch import zeros
    >>> list(flattened({"model": {"module.blocks.0._orig_mod.norm.bias": zeros(2)}, "epoch": 3}))
    ['model.blocks.0.norm.bias']
    """
    flat: State = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(key, str):
            continue
        name = _WRAPPER.sub("", f"{prefix}{key}.")
        if isinstance(value, Tensor):
            flat[name.removesuffix(".")] = value
        elif isinstance(value, Mapping):
            flat |= flattened(value, name)
    return flat


def before(flat: Mapping[str, Tensor], ends: Iterable[str]) -> list[str]:
    """What stands before the names `ends` in the names of a file, each once."""
    found = {name.removesuffix(end): None for end in ends for name in flat if name == end or name.endswith(f".{end}")}
    return list(found)


def within(flat: Mapping[str, Tensor], prefix: str, others: Iterable[str]) -> State:
    """The weights behind a prefix, without those behind longer ones."""
    inner = tuple(other for other in others if other != prefix and other.startswith(prefix))
    return part({name: value for name, value in flat.items() if not (inner and name.startswith(inner))}, prefix)


def roles(prefixes: Iterable[str], path: str) -> dict[str, str]:
    """ "student", "teacher" or, for the only one without a word for it, "backbone" -> its prefix.

    >>> roles(["state_dict.", "state_dict_ema."], "a.pth")
    {'student': 'state_dict.', 'teacher': 'state_dict_ema.'}

    Raises:
        ValueError: there are two of one role.
    """
    found: dict[str, list[str]] = {"student": [], "teacher": [], "": []}
    for prefix in prefixes:
        words = re.split(r"[._]", prefix.lower())
        found["teacher" if set(words) & {*TEACHERS} else "student" if set(words) & {*STUDENTS} else ""].append(prefix)
    nameless = found.pop("")
    if nameless and not any(found.values()):
        found = {"backbone": nameless}
    else:
        found["student"] += nameless
    for role, several in found.items():
        if len(several) > 1:
            shown = ", ".join(f"{name}* " if name else "names without a prefix " for name in several).strip()
            raise ValueError(
                f"{path} holds {len(several)} backbones, and nothing says which one is meant ({role}): {shown}. Save "
                "the one that you want alone, such as torch.save(model.encoder.state_dict(), 'encoder.pth')"
            )
    return {role: several[0] for role, several in found.items() if several}


def is_weight(name: str) -> bool:
    """Whether a dotted name may be a weight, and not the state of an optimizer or of a training loop."""
    return _NO_WEIGHTS.match(name) is None


def prefixes(flat: Mapping[str, Tensor], count: float) -> list[str]:
    """Prefixes of more than `count` names, shortest first."""
    counts = Counter(name[:end] for name in flat for end in (0, *(dot.end() for dot in re.finditer(r"\.", name))))
    return sorted((prefix for prefix, number in counts.items() if number > count), key=len)


def innermost(found: Collection[str]) -> list[str]:
    """Prefixes of which no longer one is there, too."""
    return [prefix for prefix in found if not any(other != prefix and other.startswith(prefix) for other in found)]
