"""Put weights into a module: strictly, or with position tables resized."""

# l entries of a table | h heads | c channels | p prefix tokens

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.backbones import Backbone
from esvit_pl.checkpoints.checkpoint import State, part, under

SHOWN = 6
"""How many names of one kind a message lists."""
MASK = "mask_vector"
"""A backbone's name for what stands in place of masked patches; only trainings that mask have it."""

_HEAD = re.compile(
    r"((.*_)?(head|heads|classifier|projector|projection|predictor|prototypes|decoder|logits)(_.*)?|fc|proj|queue.*)"
)
"""First words of names of classifiers and of what a training puts on top of a backbone."""


@torch.no_grad()
def load_(module: nn.Module, state: Mapping[str, Tensor], what: str, *, resize: bool = False) -> None:
    """Load every parameter and buffer of `module`, by name.

    Args:
        module: changed in place; if this raises, it stays as it was.
        state: weights with exactly its names and shapes.
        what: what the weights are called in the message, such as "released.pth (teacher)".
        resize: whether to resize position tables of another size (`resized`).

    Raises:
        ValueError: weights are missing, superfluous, or of another shape; the message has names and shapes.
    """
    wanted = module.state_dict()
    state = {name: _sized(name, value, wanted.get(name)) if resize else value for name, value in state.items()}
    problems = misfits(state, wanted)
    if problems:
        raise ValueError(f"{what} does not fit:\n  " + "\n  ".join(problems))
    module.load_state_dict(dict(state))


def misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Lines that name the weights that are missing, not in the model, of another shape, or of another kind."""
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    others = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}{_meaning(name, state[name], value)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    kinds = {"missing": missing, "not in the model": unexpected, "of another shape": others}
    kinds["of another kind"] = [
        f"{name} {_kind(value)} instead of {_kind(wanted[name])}"
        for name, value in state.items()
        if name in wanted and not _is_plain(value, like=wanted[name])
    ]
    return [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]


def resized(name: str, table: Tensor, shape: torch.Size) -> Tensor:
    """Resize a position table that was made for another window or image side, by bicubic interpolation.

    Relative tables (l h), l = (2 side - 1) ** 2, are resized as pictures of offsets, as Swin's authors do. Absolute
    tables (1 p+l c) are resized as pictures of places, without their p prefix tokens; ViL's rows and columns (1 l c) as
    lines. Any other table comes back as it is.
    """
    if name.endswith("relative_position_bias_table"):
        return _picture(table.T[None], isqrt(shape[0]))[0].T.contiguous()
    if name.endswith(("x_pos_embed", "y_pos_embed")):
        line = F.interpolate(table.mT[..., None].float(), size=(shape[1], 1), mode="bicubic")
        return line[..., 0].mT.to(table.dtype).contiguous()
    if name.endswith("pos_embed"):
        prefix = _prefix(table.shape[1], shape[1])
        if prefix is not None:
            places = _picture(table[:, prefix:].mT, isqrt(shape[1] - prefix)).mT
            return torch.cat([table[:, :prefix], places], dim=1)
    return table


def fitted(network: State, backbone: Backbone) -> State:
    """The weights of a network's backbone, under the names that `backbone` has for them.

    A model of timm's own and one of ours may have the same architecture; they differ in a prefix and the classifier.
    """
    state, wanted = part(network, "backbone."), set(backbone.state_dict())
    choices = [state, under("model.", state), part(state, "model."), part(state, "backbone.")]
    best = max(choices, key=lambda choice: len(wanted & set(choice)))
    if MASK in wanted and MASK not in best:  # the training of these weights masked nothing
        best = {**best, MASK: backbone.state_dict()[MASK]}
    return {name: value for name, value in best.items() if name in wanted or not has_no_part(name)}


def _is_plain(value: Tensor, like: Tensor) -> bool:
    """Whether loading keeps the numbers. It loses those of quantised, complex and sparse weights; "meta" has none."""
    stored = value.layout == torch.strided and not value.is_meta
    return stored and value.is_floating_point() == like.is_floating_point()


def _kind(value: Tensor) -> str:
    words = (str(value.dtype), "" if value.layout == torch.strided else str(value.layout), "on meta" * value.is_meta)
    return " ".join(word.removeprefix("torch.") for word in words if word)


def _sized(name: str, value: Tensor, wanted: Tensor | None) -> Tensor:
    same_rank = wanted is not None and wanted.ndim == value.ndim and wanted.shape[-1] == value.shape[-1]
    if wanted is None or not same_rank or wanted.shape == value.shape:
        return value
    return resized(name, value, wanted.shape)


def _picture(table: Tensor, side: int) -> Tensor:
    """Resize square pictures: (b c l) -> (b c side*side)."""
    old = isqrt(table.shape[-1])
    picture = F.interpolate(torch.unflatten(table, -1, (old, old)).float(), size=(side, side), mode="bicubic")
    return picture.flatten(-2).to(table.dtype)


def _prefix(old: int, new: int) -> int | None:
    """How many prefix tokens (class, distillation, registers) both tables have: the rest of each is a square."""
    for prefix in range(9):
        if all(isqrt(length - prefix) ** 2 == length - prefix for length in (old, new)):
            return prefix
    return None


def _meaning(name: str, state: Tensor, wanted: Tensor) -> str:
    """The settings that two shapes stand for, if people know them by name."""
    if name.endswith(".relative_position_bias_table") and state.shape[1] == wanted.shape[1]:
        of, asked = ((isqrt(len(table)) + 1) // 2 for table in (state, wanted))
        return f" (windows of {of} and {asked})"
    if name.endswith("prototypes.direction") and state.shape[1] == wanted.shape[1]:
        return f" ({len(state)} and {len(wanted)} prototypes)"
    return ""


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return "; ".join(names[:SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def has_no_part(name: str) -> bool:
    """Whether a backbone can do without this weight: of a classifier, a projection, a decoder, or for masks.

    >>> has_no_part("fc.weight"), has_no_part("decoder_blocks.0.norm1.bias"), has_no_part("fc_norm.bias")
    (True, True, False)
    """
    word, _, rest = name.removeprefix("model.").partition(".")
    return word in (MASK, "mask_token") or bool(_HEAD.fullmatch(word) and not rest.startswith("norm."))
