"""Weights of timm's architectures under their authors' names, as timm calls them."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from math import isqrt
from typing import Any, cast

import timm
import torch
from timm.models import model_entrypoint
from torch import Tensor, nn

from esvit_pl.checkpoints.checkpoint import State
from esvit_pl.checkpoints.load_weights import has_no_part


def renamed(state: Mapping[str, Tensor], name: str, model: nn.Module) -> State:
    """Weights under timm's names, by timm's own function for the family.

    That function also resizes patches that do not fit; these stay as they are here, so that strict loading tells them.

    Args:
        state: of a backbone, without prefix.
        name: of the architecture.
        model: of this architecture, on any device, for images of the size of the weights (`on_meta`).
    """
    in_stages = any(map(_CHUNKED.match, model.state_dict()))  # in Twins two numbers mean something else than chunks
    state = dict(state) if in_stages else unchunked(state)
    if "register_tokens" in state or any(".mlp.w12." in key for key in state):
        state = {"mask_token": torch.zeros(0), **state}  # by which timm recognises DINOv2
    module = sys.modules[model_entrypoint(timm.models.get_arch_name(name)).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted = cast(State, convert(dict(state), model))
    except Exception:  # weights of something else altogether; strict loading tells the names
        return state
    return {
        # the table of positions stays: the model is made for its size, and registers take the class token's place off
        key: value if state.get(key, value).numel() == value.numel() or key == "pos_embed" else state[key]
        for key, value in converted.items()
        if key != "mask_token"
    }


def unchunked(state: Mapping[str, Tensor]) -> State:
    """DINOv2 keeps blocks in chunks for distributed training: ``blocks.0.7.norm1`` is ``blocks.7.norm1``."""
    return {_CHUNKED.sub(r"blocks.\1.", key): value for key, value in state.items()}


_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.(?=norm|attn|mlp|ls)")


def of_vit(state: State, spec: Mapping[str, Any]) -> State:
    """A ViT's weights under timm's names."""
    if "register_tokens" not in state and "mask_token" not in state and not any(".mlp.w12." in key for key in state):
        return state
    spec, made = on_meta(spec, state)
    return renamed(state, spec["name"], made)


def on_meta(spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[dict[str, Any], nn.Module]:
    """A timm model without memory, for images of the size for which the weights' position table was made, and its spec.

    Args:
        spec: of a `TimmBackbone`.
        state: weights of a backbone, without prefix.
    """
    own = {name: value for name, value in spec.items() if name not in ("name", "drop_path_rate", "pool", "img_size")}
    made = _on_meta(spec["name"], spec.get("img_size", 224), own)
    side = _side(made, state)
    if side is None or side == spec.get("img_size", 224):
        return dict(spec), made
    return {**spec, "img_size": side}, _on_meta(spec["name"], side, own)


def _on_meta(name: str, side: int, own: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        try:
            return timm.create_model(name, num_classes=0, img_size=side, **own)
        except TypeError:  # a family whose weights do not depend on the size of the images
            return timm.create_model(name, num_classes=0, **own)


def _side(made: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    table, patches = state.get("pos_embed"), getattr(made, "patch_embed", None)
    if table is None or table.ndim != 3 or not hasattr(patches, "patch_size"):
        return None
    for prefix in range(9):  # class, distillation and register tokens
        side = isqrt(table.shape[1] - prefix)
        if side * side == table.shape[1] - prefix:
            return side * cast(int, cast(Any, patches).patch_size[0])
    return None


def fits(state: Mapping[str, Tensor], name: str) -> bool:
    """Whether a timm model has exactly these names and shapes of weights, but for classifiers and position tables."""
    if not timm.is_model(name):
        return False
    _, made = on_meta({"name": name}, state)
    mine = {key: value for key, value in renamed(state, name, made).items() if not has_no_part(key)}
    wanted = made.state_dict()
    return mine.keys() == wanted.keys() and all(
        mine[key].shape == value.shape for key, value in wanted.items() if not key.endswith("pos_embed")
    )


def like(names: Collection[str]) -> str | None:
    """How the names of timm's models begin whose weights have such names; None where nobody knows."""
    return next((family for family, telling in _TELLING.items() if any(re.search(telling, n) for n in names)), None)


_TELLING = {
    "convnextv2": r"\.grn\.",
    "convnext": r"stages\.\d\.(blocks\.)?\d+\.(conv_dw|dwconv)\.",
    "swinv2": r"\.attn\.(cpb_mlp|logit_scale)",
    "regnet": r"\bs1\.b1\.",
    "efficientnet": r"\bconv_stem\.",
    "densenet": r"\bdenseblock1\.",
    "pvt_v2": r"\bpatch_embed1\.",
    "vit_small_patch16_dinov3": r"storage_tokens|rope_embed",
    "vit": r"\bblocks\.\d+\.attn\.qkv\.weight",
    "resnet": r"\blayer1\.0\.conv1\.weight",
}
"""Family -> a name that only its weights have. The first that is found counts."""
