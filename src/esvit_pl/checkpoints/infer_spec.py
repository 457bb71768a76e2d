"""The spec of a backbone, read off its weights alone: files of others say no more.

Weights have their released names (docs/checkpoints.md), without those of the heads.
"""

# w side of a window | m side of a token map

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import isqrt, prod
from typing import Any, NamedTuple

from torch import Tensor

from esvit_pl.checkpoints import timm_names

State = Mapping[str, Tensor]
FIRST_WEIGHTS = ("patch_embed.proj.weight", "stage0.0.proj.weight", "layer1.0.proj.weight", "conv1.weight")
"""Names of the first weight in each family; what stands before them in a file is a prefix."""
_NO_PLAIN_VIT = r"\.ls1\.|\.gamma|register_tokens|reg_token|dist_token|\.w12\.|norm_pre|[qk]_norm|fc_norm|\.attn_pool"
"""What ViTs have that the release does not train."""


class Inferred(NamedTuple):
    """What weights say of their backbone."""

    spec: dict[str, Any]
    """Arguments of ``backbones.build``."""
    guessed: tuple[str, ...] = ()
    """Arguments that the weights leave open. In `spec` they have the published models' values, or are left out."""


def infer_spec(state: State) -> Inferred | None:
    """The spec of a backbone with these weights; None where no family is recognised."""
    for recognised, read in _FAMILIES.items():
        if all(any(re.match(pattern, name) for name in state) for pattern in recognised):
            return read(state)
    return None


def recognised(state: State) -> bool:
    """Whether `infer_spec` knows the family."""
    return any(all(any(re.match(pattern, name) for name in state) for pattern in family) for family in _FAMILIES)


def _swin(state: State) -> Inferred:
    stages = _count(state, r"layers\.(\d+)\.blocks\.")
    tables = [state[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(stages)]
    windows = [(isqrt(len(table)) + 1) // 2 for table in tables]
    projection = state["patch_embed.proj.weight"]
    patch = projection.shape[-1]
    # A window smaller than the first stage's is that stage's whole map, which tells the nominal image.
    nominal = [w * patch * 2**stage for stage, w in enumerate(windows) if w < windows[0]]
    fits_224 = [min(windows[0], 224 // (patch * 2**stage)) for stage in range(stages)] == windows
    spec = {
        "name": "swin",
        "embed_dim": projection.shape[0],
        "depths": [_count(state, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
        "num_heads": [table.shape[1] for table in tables],
        "window": windows[0],
        "img_size": 224 if fits_224 or not nominal else nominal[0],
        "patch_size": patch,
        "in_chans": projection.shape[1],
        "mlp_ratio": state["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / projection.shape[0],
    }
    return Inferred(spec, ("img_size", "drop_path_rate", "init"))


def _cvt(state: State) -> Inferred:
    stages = _count(state, r"stage(\d+)\.")
    embeddings = [state[f"stage{stage}.0.proj.weight"] for stage in range(stages)]
    dims = [embedding.shape[0] for embedding in embeddings]
    head = 64 if dims[:2] == [64, 192] else 32  # channels of a head in CvT-T and CvT-S
    spec = {
        "name": "cvt",
        "dims": dims,
        "depths": [_count(state, rf"stage{stage}\.1\.layers\.(\d+)\.") for stage in range(stages)],
        "num_heads": [max(dim // head, 1) for dim in dims],
        "windows": [7] * stages,
        "in_chans": embeddings[0].shape[1],
        "mlp_ratio": state["stage0.1.layers.0.1.fn.net.0.weight"].shape[0] / dims[0],
    }
    return Inferred(spec, ("num_heads", "windows", "drop_path_rate"))


def _vil(state: State) -> Inferred:
    stages = [f"layer{number}" for number in range(1, 1 + max(int(m[1]) for m in _matches(state, r"layer(\d+)\.")))]
    embeddings = [state[f"{stage}.0.proj.weight"] for stage in stages]
    dims, patches = [e.shape[0] for e in embeddings], [e.shape[-1] for e in embeddings]
    sliding = [f"{stage}.1.attn.query.weight" in state for stage in stages]
    tables = [state.get(f"{stage}.1.attn.local_relative_position_bias_table") for stage in stages]
    rows = [state.get(f"{stage}.0.x_pos_embed") for stage in stages]
    maps = [_vil_map(*stage) for stage in zip(sliding, tables, rows, strict=True)]
    shared = [
        _same(state, f"{stage}.1.attn.query") for stage in stages if f"{stage}.1.attn.query_global.weight" in state
    ]
    sides = [m * prod(patches[: stage + 1]) for stage, m in enumerate(maps) if m is not None]
    fits_224 = all(m in (None, 224 // prod(patches[: stage + 1])) for stage, m in enumerate(maps))
    tokens = [state.get(f"{stage}.0.cls_token") for stage in stages]
    spec = {
        "name": "vil",
        "dims": dims,
        "depths": [_count(state, rf"{stage}\.(\d+)\.attn\.") for stage in stages],
        "num_heads": [
            max(dim // 32, 1) if table is None else table.shape[1] for dim, table in zip(dims, tables, strict=True)
        ],
        "patch_sizes": patches,
        "windows": [
            (isqrt(len(table)) + 1) // 4 if slides and table is not None else 7
            for slides, table in zip(sliding, tables, strict=True)
        ],
        "num_globals": [0 if token is None else token.shape[1] for token in tokens],
        "sliding": sliding,
        "positions": ["absolute" if row is not None else "relative" for row in rows],
        "share_projections": all(shared),
        "mode": 1,
        "norm_embed": "layer1.0.norm_embed.weight" in state,
        "img_size": 224 if fits_224 or not sides else sides[-1],
        "in_chans": embeddings[0].shape[1],
        "mlp_ratio": state["layer1.2.mlp.fc1.weight"].shape[0] / dims[0],
    }
    absolute = [] if all(table is not None for table in tables) else ["num_heads"]
    unknown_windows = any(slides and table is None for slides, table in zip(sliding, tables, strict=True))
    windows = ["windows"] if unknown_windows else []
    return Inferred(spec, (*absolute, *windows, "mode", "avg_pool", "img_size", "drop_path_rate"))


def _vil_map(sliding: bool, table: Tensor | None, rows: Tensor | None) -> int | None:
    """Side of the token map that a stage's position table was made for."""
    if rows is not None:
        return rows.shape[1]
    return None if sliding or table is None else (isqrt(len(table)) + 1) // 2


def _vit(state: State) -> Inferred:
    projection, depth = state["patch_embed.proj.weight"], _count(state, r"blocks\.(\d+)\.")
    width, patch, table = projection.shape[0], projection.shape[-1], state["pos_embed"]
    known = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}
    channels = {"in_chans": projection.shape[1]}
    if not any(re.search(_NO_PLAIN_VIT, name) for name in state) and (width, depth) in known:
        name = f"vit_{known[width, depth]}_patch{patch}_224"
        side = isqrt(table.shape[1] - 1) * patch
        return Inferred({"name": name, "img_size": side, **channels}, ("drop_path_rate", "pool"))
    size = known.get((width, depth)) or {(1280, 32): "huge", (1536, 40): "giant"}.get((width, depth))
    registers = "reg4_" if "register_tokens" in state or "reg_token" in state else ""
    candidates = (f"vit_{size}_patch{patch}_{registers}dinov2", f"deit3_{size}_patch{patch}_224")
    for name in (name for name in candidates if timm_names.fits(state, name)):
        spec, _ = timm_names.on_meta({"name": name, **channels}, state)
        return Inferred(spec, ("drop_path_rate", "pool"))
    size = {w: name for (w, _), name in known.items()}.get(width, "")
    differ = {"patch_size": patch, "depth": depth, "embed_dim": width, "num_heads": max(width // 64, 1)}
    same = {"patch_size": patch == 16, "depth": (width, depth) in known, "embed_dim": size, "num_heads": size}
    words = "".join(f" +backbone.{name}={value}" for name, value in differ.items() if not same[name])
    raise ValueError(
        f"timm has no ViT of width {width}, {depth} blocks and patches of {patch} px with weights of these names. Name "
        "the model that comes nearest and what differs, such as backbone=timm "
        f"backbone.name=vit_{size or 'small'}_patch16_224{words}"
    )


def _resnet(state: State) -> Inferred:
    depths = [_count(state, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5)]
    kind = ("bottleneck" if "layer1.0.conv3.weight" in state else "basic", *depths)
    known = {
        ("basic", 2, 2, 2, 2): "resnet18",
        ("basic", 3, 4, 6, 3): "resnet34",
        ("bottleneck", 3, 4, 6, 3): "resnet50",
        ("bottleneck", 3, 4, 23, 3): "resnet101",
        ("bottleneck", 3, 8, 36, 3): "resnet152",
    }
    if kind not in known:
        raise ValueError(
            f"torchvision has no ResNet of {kind[0]} blocks {depths}; name its timm model: backbone=timm "
            "backbone.name=..."
        )
    return Inferred({"name": known[kind], "in_chans": state["conv1.weight"].shape[1]}, ("img_size", "drop_path_rate"))


_FAMILIES: dict[tuple[str, ...], Callable[[State], Inferred]] = {
    (r"patch_embed\.proj\.weight$", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table$"): _swin,
    (r"stage0\.0\.proj\.weight$", r"stage0\.1\.layers\.0\.0\.fn\.qkv\.dw\.weight$"): _cvt,
    (r"layer1\.0\.proj\.weight$", r"layer1\.1\.attn\."): _vil,
    (r"patch_embed\.proj\.weight$", r"cls_token$", r"pos_embed$", r"blocks\.0\.attn\.qkv\.weight$"): _vit,
    (r"conv1\.weight$", r"bn1\.weight$", r"layer4\.0\.conv1\.weight$"): _resnet,
}
"""Names that all weights of a family have -> the function that reads its spec."""


def _matches(state: State, pattern: str) -> list[re.Match[str]]:
    return [match for name in state if (match := re.match(pattern, name))]


def _count(state: State, pattern: str) -> int:
    """How many different numbers the pattern finds."""
    return len({int(match[1]) for match in _matches(state, pattern)})


def _same(state: State, name: str) -> bool:
    """Whether a ViL's globals are projected like its locals."""
    local, of_globals = state[f"{name}.weight"], state[f"{name}_global.weight"]
    return local.data_ptr() == of_globals.data_ptr() or bool((local == of_globals).all())
