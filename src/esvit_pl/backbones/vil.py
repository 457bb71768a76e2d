"""ViL, the Vision Longformer (Zhang et al., arXiv 2103.15358), with the arithmetic of the EsViT release.

In early stages a token attends to the chunks around it, in late ones to all tokens (vil_attention.py). Every stage puts
its own learnt global tokens in front of the map's tokens, and drops them at its end. Parameter names are the released
ones.
"""

# b images | g globals | h, w rows and columns of a map | n = h * w locals | c channels

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, cast

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from esvit_pl.backbones.interface import Attention, Features, Regions, check_stage
from esvit_pl.backbones.recompute import Recomputable
from esvit_pl.backbones.stages import StagedBackbone, check_block, check_sizes, drop_path_rates
from esvit_pl.backbones.vil_attention import (
    AROUND,
    OWN,
    FullAttention,
    Grid,
    SlidingAttention,
    cubic_weights,
    relative_index,
)
from esvit_pl.specs import spec_of

EPS = 1e-6


class ViL(StagedBackbone):
    """A ViL of any size, for images of any size and shape that leave at least one token in the last stage.

    >>> vil = ViL(
    ...     dims=[8, 16], depths=[1, 1], num_heads=[1, 2], patch_sizes=[4, 2], windows=[7, 7], num_globals=[1, 0],
    ...     sliding=[True, False], positions=["relative", "relative"],
    ... )
    >>> features = vil(torch.randn(2, 3, 64, 64))
    >>> tuple(features.pooled.shape), tuple(features.regions.shape), features.grid
    ((2, 16), (2, 64, 16), (8, 8))

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        patch_sizes: side of the patches that each stage merges, in pixels (first stage) or tokens. As released, rows
            and columns that do not fill a whole patch are left out.
        windows: side of a chunk in tokens, in stages with sliding attention.
        num_globals: global tokens of each stage.
        sliding: whether a stage attends within sliding chunks, or fully.
        positions: of each stage, "relative" for a bias in the attention or "absolute" for an embedding of rows and
            columns.
        mode: which chunks a local token sees besides its own. 0: the 8 around it. -1: none. 1: in evaluation the 8
            around it, in training one of them, drawn again in every attention and pass of student and teacher.
        share_projections: whether globals and locals use the same projections; it saves parameters, as released.
        norm_embed: layer norm after the merging of patches.
        avg_pool: pool the mean of all tokens of the last stage even if it has globals, instead of the first global.
        img_size: nominal side of the images in pixels, for which position tables are made; for others they are resized.
        in_chans: channels of the images.
        mlp_ratio: width of the MLP's hidden layer, divided by the block's width.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first (docs/recipes.md).

    The global tokens of a last stage that has them are no regions.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        patch_sizes: Sequence[int] = (4, 2, 2, 2),
        windows: Sequence[int] = (7, 7, 7, 7),
        num_globals: Sequence[int] = (1, 1, 1, 0),
        sliding: Sequence[bool] = (True, True, False, False),
        positions: Sequence[Literal["relative", "absolute"]] = ("relative",) * 4,
        mode: int = 1,
        share_projections: bool = True,
        norm_embed: bool = True,
        avg_pool: bool = False,
        img_size: int = 224,
        in_chans: int = 3,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.spec = spec_of("vil", locals())
        self.stage_widths = list(dims)
        _check(self.spec)
        for stage, rates in enumerate(drop_path_rates(self.spec)):
            self.add_module(f"layer{stage + 1}", _stage(self.spec, stage, rates))
        self.norm = nn.LayerNorm(dims[-1], eps=EPS)
        self.apply(_initialise)
        self.patch_size = math.prod(patch_sizes)
        self.width = self.region_width = dims[-1]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        if mask is not None:
            self.learn_mask()  # raises, and names the families that take masks
        for _, tokens, grid in self.walk(x):
            last, shape = tokens, grid
        z = self.norm(last)
        return Features(self.pool(z, self.stages[-1]), z[:, self.stages[-1].num_globals :], shape)

    def freeze_embedding(self) -> None:
        self.get_submodule("layer1.0.proj").requires_grad_(False)

    def stage_regions(self, x: Tensor, stage: int = -1) -> Regions:
        index = check_stage(stage, self.num_stages)
        for after_block in islice(self.walk(x), sum(self.spec["depths"][: index + 1])):
            last = after_block
        place, tokens, grid = last
        tokens = self.norm(tokens) if index == self.num_stages - 1 else tokens
        return Regions(tokens[:, place.num_globals :], grid)

    def block_features(self, x: Tensor) -> Iterator[Features]:
        for stage, tokens, grid in self.walk(x):
            z = self.norm(tokens) if stage is self.stages[-1] else tokens
            yield Features(self.pool(z, stage), z[:, stage.num_globals :], grid)

    def block_of(self, parameter: str) -> tuple[int, int] | None:
        found = re.match(r"layer(?!1\.0\.)(\d+)\.(\d+)\.", parameter)  # item 0 embeds, 1 and 2 are the first block
        return None if found is None else (int(found[1]) - 1, max(int(found[2]) - 1, 0) // 2)

    def attention(self, x: Tensor, block: int = -1) -> Attention:
        branches = [branch for stage in self.stages for branch, _ in stage.blocks]
        check_block(block, len(branches))
        wanted = branches[block]
        for stage in self.stages:
            tokens, grid = stage.embed(x)
            for branch, mlp in stage.blocks:
                if branch is wanted:
                    return wanted.attn.weights(branch.norm(tokens), grid)
                tokens = mlp(branch(tokens, grid))
            x = stage.as_map(tokens, grid)
        raise AssertionError("the wanted block is in one of the stages")

    def check_compiles(self) -> None:
        sliding = any(isinstance(branch.attn, SlidingAttention) for stage in self.stages for branch, _ in stage.blocks)
        if self.spec["mode"] > 0 and sliding:
            raise ValueError(
                f"ViL with mode={self.spec['mode']} draws anew in every pass which chunks attend to which, and no "
                "compiled graph can do that; set backbone.mode=0 (all chunks around), or module.compile=false"
            )

    @property
    def stages(self) -> list[Stage]:
        return [cast(Stage, self.get_submodule(f"layer{stage + 1}")) for stage in range(len(self.spec["dims"]))]

    def walk(self, x: Tensor) -> Iterator[tuple[Stage, Tensor, Grid]]:
        """The stage, (b g+n c) tokens and (h, w) of their map after every block."""
        if min(x.shape[-2:]) < self.patch_size:
            raise ValueError(
                f"ViL needs images of {self.patch_size} px or more, so that the last stage has a token; "
                f"got {x.shape[-2]} x {x.shape[-1]}"
            )
        for stage in self.stages:
            tokens, grid = stage.embed(x)
            for branch, mlp in stage.blocks:
                tokens = mlp(branch(tokens, grid))
                yield stage, tokens, grid
            x = stage.as_map(tokens, grid)

    def pool(self, tokens: Tensor, stage: Stage) -> Tensor:
        """(b g+n c) -> (b c): the first global token, or the mean of all tokens."""
        return tokens[:, 0] if stage.num_globals and not self.spec["avg_pool"] else tokens.mean(1)


class Stage(nn.Sequential):
    """An embedding (item 0), then attention (items 1, 3, ...) and MLP (items 2, 4, ...) in turn, as released."""

    @property
    def embed(self) -> Embedding:
        return cast(Embedding, self[0])

    @property
    def blocks(self) -> list[tuple[AttentionBranch, MlpBranch]]:
        parts = list(self)[1:]
        return list(zip(cast(list[AttentionBranch], parts[::2]), cast(list[MlpBranch], parts[1::2]), strict=True))

    @property
    def num_globals(self) -> int:
        return self.embed.num_globals

    def as_map(self, tokens: Tensor, grid: Grid) -> Tensor:
        """(b g+n c) -> (b c h w), without the stage's globals."""
        return torch.unflatten(tokens[:, self.num_globals :].mT, 2, grid)


class Embedding(nn.Module):
    """Patches to tokens, the stage's globals in front, and absolute positions if it has them.

    Args:
        in_chans: channels of the map.
        dim: c, channels of the tokens.
        patch_size: side of a patch in cells of the map.
        num_globals: g.
        native: side of the token map at the nominal image size, for absolute positions; None: without.
        norm: layer norm of the map's tokens.
    """

    def __init__(
        self, in_chans: int, dim: int, *, patch_size: int, num_globals: int, native: int | None, norm: bool
    ) -> None:
        super().__init__()
        self.num_globals = num_globals
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.norm_embed = nn.LayerNorm(dim, eps=EPS) if norm else nn.Identity()
        self.cls_token = _normal(1, num_globals, dim) if num_globals else None
        self.cls_pos_embed = _normal(1, num_globals, dim) if num_globals and native is not None else None
        self.x_pos_embed = _normal(1, native, dim // 2) if native is not None else None
        self.y_pos_embed = _normal(1, native, dim // 2) if native is not None else None

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """(b in_chans H W) -> (b g+n c), (h, w)"""
        x = self.proj(x)
        grid = (x.shape[2], x.shape[3])
        tokens = self.norm_embed(x.flatten(2).mT)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        positions = self.positions(grid)
        return (tokens if positions is None else tokens + positions), grid

    def positions(self, grid: Grid) -> Tensor | None:
        """(1 g+n c): those of the globals, then of every token: half of the channels tell its row, half its column.

        As released, the table is resized by sqrt((g + n) / native^2), so that with globals it is resampled even at the
        nominal size. The release only has square maps; here each axis is resized by its own share of that factor.
        """
        if self.x_pos_embed is None or self.y_pos_embed is None:
            return None
        h, w = grid
        stretch = math.sqrt((self.num_globals + h * w) / (h * w))
        rows, columns = resized(self.x_pos_embed, h, stretch), resized(self.y_pos_embed, w, stretch)
        table = torch.cat([rows[:, :, None].expand(-1, -1, w, -1), columns[:, None].expand(-1, h, -1, -1)], dim=-1)
        table = table.flatten(1, 2)
        return table if self.cls_pos_embed is None else torch.cat([self.cls_pos_embed, table], dim=1)


def resized(table: Tensor, length: int, stretch: float) -> Tensor:
    """(1 native c) -> (1 length c): bicubic, at `stretch` times the scale that would fit it to the length.

    Rows and columns can be resized separately, because a bicubic resize of their sum or concatenation does the same.
    """
    native = table.shape[1]
    return cubic_weights(length, native, stretch * length / native, table.device, table.dtype) @ table


class AttentionBranch(Recomputable):
    """x + attention(norm(x)); stochastic depth drops the second term for some images."""

    def __init__(self, attention: SlidingAttention | FullAttention, dim: int, rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.attn = attention
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(b g+n c) -> (b g+n c)"""
        out: Tensor = x + self.drop_path(self.attn(self.norm(x), grid))
        return out


class MlpBranch(Recomputable):
    """x + mlp(norm(x)); stochastic depth drops the second term for some images."""

    def __init__(self, dim: int, hidden: int, rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, hidden)
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        """(b g+n c) -> (b g+n c)"""
        out: Tensor = x + self.drop_path(self.mlp(self.norm(x)))
        return out


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released weights of the backbone -> ours: the same names, without index tables and empty tensors."""
    return {
        name: value for name, value in state.items() if value.numel() and not name.endswith("relative_position_index")
    }


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights -> released ones; undoes `from_released`, and adds what it left out."""
    released = dict(state)
    for name, value in state.items():
        module, _, parameter = name.rpartition(".")
        if parameter == "x_pos_embed" and f"{module}.cls_pos_embed" not in state:
            released[f"{module}.cls_pos_embed"] = value.new_empty(1, 0, 2 * value.shape[-1])
        if parameter == "local_relative_position_bias_table":
            reach = (math.isqrt(len(value)) - 1) // 2
            side, offsets = ((reach + 1) // 2, AROUND) if f"{module}.query.weight" in state else (reach + 1, OWN)
            released[f"{module}.relative_position_index"] = relative_index(side, offsets, reach, value.device).clone()
    return released


def _stage(spec: dict[str, Any], stage: int, rates: list[float]) -> Stage:
    """Stage number `stage` of a ViL, counted from 0, with a stochastic depth for each of its blocks."""
    dim, heads, num_globals, patch = (spec[key][stage] for key in ("dims", "num_heads", "num_globals", "patch_sizes"))
    native = spec["img_size"] // math.prod(spec["patch_sizes"][: stage + 1])
    relative = spec["positions"][stage] == "relative"

    def attention() -> SlidingAttention | FullAttention:
        if not spec["sliding"][stage]:
            return FullAttention(dim, heads, num_globals=num_globals, native=native if relative else None)
        return SlidingAttention(
            dim,
            heads,
            num_globals=num_globals,
            side=spec["windows"][stage],
            mode=spec["mode"],
            relative=relative,
            shared=spec["share_projections"],
        )

    embed = Embedding(
        spec["dims"][stage - 1] if stage else spec["in_chans"],
        dim,
        patch_size=patch,
        num_globals=num_globals,
        native=None if relative else native,
        norm=spec["norm_embed"],
    )
    blocks = [
        (AttentionBranch(attention(), dim, rate), MlpBranch(dim, int(spec["mlp_ratio"] * dim), rate)) for rate in rates
    ]
    return Stage(embed, *(branch for block in blocks for branch in block))


def _normal(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def _initialise(module: nn.Module) -> None:
    """Truncated normal 0.02 for Linear layers; the convolutions keep torch's default, as released."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _check(spec: dict[str, Any]) -> None:
    for name in ("num_globals", "sliding", "positions"):
        if len(spec[name]) != len(spec["dims"]):
            raise ValueError(f"ViL needs one of {name} for each stage; got dims={spec['dims']}, {name}={spec[name]}")
    check_sizes(
        "ViL",
        spec,
        spec["dims"],
        per_stage=("dims", "depths", "num_heads", "patch_sizes", "windows"),
        positive=("img_size", "in_chans", "mlp_ratio"),
    )
    if min(spec["num_globals"]) < 0:
        raise ValueError(f"ViL needs num_globals of 0 or more, got {spec['num_globals']}")
    for stage, (dim, positions) in enumerate(zip(spec["dims"], spec["positions"], strict=True)):
        if positions not in ("relative", "absolute"):
            raise ValueError(f"ViL needs positions 'relative' or 'absolute', got {positions!r}")
        if positions == "absolute" and dim % 2:
            raise ValueError(f"ViL's stage {stage} is {dim} wide; absolute positions need an even width")
    if spec["img_size"] < math.prod(spec["patch_sizes"]):
        raise ValueError(
            f"ViL needs an img_size of {math.prod(spec['patch_sizes'])} px or more with patch_sizes "
            f"{spec['patch_sizes']}, got {spec['img_size']}"
        )
    if spec["mode"] < -1:
        raise ValueError(f"ViL needs mode 0 (all chunks around), -1 (none) or 1 (one of them), got {spec['mode']}")
