"""Swin Transformer (Liu et al., arXiv 2103.14030) with the arithmetic of the EsViT release, on timm's parts.

timm's model and the released one agree where every map is a multiple of the window (224 px). Elsewhere they differ:
the release pads the map first and then rolls it, timm rolls first. `SwinBlock` takes over the parts of a timm block and
does it in the released order, without computing the padding; parameter names stay timm's.
"""

# b images | h, w rows and columns of a map | p, q the same after padding | s side of a window | w2 = s * s
# n tokens of a window | c channels | d channels of a head

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import isqrt
from typing import Literal, cast

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerStage,
    get_relative_position_index,
)
from torch import Tensor, nn

from esvit_pl.backbones.interface import Attention, Features, Regions, check_stage, hide, places_in_windows
from esvit_pl.backbones.recompute import Recomputable
from esvit_pl.backbones.stages import StagedBackbone, check_sizes
from esvit_pl.backbones.swin_windows import Strip, WindowGroup, WindowPlan, shifted_window_mask, window_plan
from esvit_pl.precision import narrow
from esvit_pl.specs import spec_of


class Swin(StagedBackbone):
    """A Swin backbone of any size for inputs of any size.

    Args:
        embed_dim: channels of the first stage; they double at every patch merging.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window: side of an attention window in tokens. A stage whose map at `img_size` is no larger than the window
            gets one window of the map's side and no shift. No later input changes that, as in the release.
        img_size: nominal input side in pixels, from which the windows follow.
        patch_size: side of a patch in pixels. Inputs that are no multiple of it are zero-padded right and bottom.
        in_chans: channels of the images.
        mlp_ratio: width of the MLP's hidden layer over the block's.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first (docs/recipes.md).
        init: "trunc_normal" (0.02, as released) or "fan_in": Linear weights from N(0, 1 / inputs), which learns faster
            in networks of a few narrow blocks, where 0.02 leaves the residual branches almost silent.

    >>> swin = Swin(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=4, img_size=32)
    >>> pooled, regions, grid = swin(torch.zeros(2, 3, 32, 32))
    >>> tuple(pooled.shape), tuple(regions.shape), grid
    ((2, 16), (2, 16, 16), (4, 4))
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.1,
        init: Literal["trunc_normal", "fan_in"] = "trunc_normal",
    ) -> None:
        super().__init__()
        self.spec = spec_of("swin", locals())
        self.patch_size = patch_size
        self.stage_widths = [embed_dim * 2**stage for stage in range(len(depths))]
        check_sizes(
            "Swin",
            self.spec,
            self.stage_widths,
            per_stage=("depths", "num_heads"),
            positive=("embed_dim", "window", "img_size", "patch_size", "in_chans", "mlp_ratio"),
        )
        if init not in ("trunc_normal", "fan_in"):
            raise ValueError(f"Swin needs init 'trunc_normal' or 'fan_in', got {init!r}")
        model = SwinTransformer(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window,
            strict_img_size=False,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
            norm_layer=cast(type[nn.Module], partial(nn.LayerNorm, eps=1e-6)),
        )
        self.patch_embed = model.patch_embed
        self.layers = nn.ModuleList(SwinStage(cast(SwinTransformerStage, stage)) for stage in model.layers)
        self.norm = model.norm
        if init == "fan_in":
            self.apply(_fan_in)
        self.width = self.region_width = self.stage_widths[-1]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        x = self.embed(x)  # (b h w c)
        if mask is not None:
            x = hide(x, mask, self.mask_vector, factor=2 ** (len(self.layers) - 1))
        for stage in self.layers:
            x = stage(x)
        regions = self.norm(x).flatten(1, 2)  # (b n c)
        return Features(regions.mean(1), regions, (x.shape[1], x.shape[2]))

    def stage_regions(self, x: Tensor, stage: int = -1) -> Regions:
        last = check_stage(stage, self.num_stages) + 1
        x = self.embed(x)
        for module in self.layers[:last]:
            x = module(x)
        x = self.norm(x) if last == self.num_stages else x
        return Regions(x.flatten(1, 2), (x.shape[1], x.shape[2]))

    def freeze_embedding(self) -> None:
        self.patch_embed.proj.requires_grad_(False)

    def learn_mask(self) -> None:
        self.mask_vector = nn.Parameter(torch.zeros(self.stage_widths[0]))

    def block_features(self, x: Tensor) -> Iterator[Features]:
        x = self.embed(x)
        for stage in self.stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = block(x)
                z = self.norm(x) if stage is self.layers[-1] else x
                yield Features(z.mean((1, 2)), z.flatten(1, 2), (z.shape[1], z.shape[2]))

    def attention(self, x: Tensor, block: int = -1) -> Attention:
        index, inside = self.place_of(block)
        stage = self.stages[index]
        x = self.embed(x)
        for earlier in self.stages[:index]:
            x = earlier(x)
        x = stage.blocks[:inside](stage.downsample(x))
        return cast(SwinBlock, stage.blocks[inside]).attention(x)

    def block_of(self, parameter: str) -> tuple[int, int] | None:
        found = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.", parameter)
        return None if found is None else (int(found[1]), int(found[2] or 0))

    @property
    def stages(self) -> list[SwinStage]:
        return [cast(SwinStage, stage) for stage in self.layers]

    def embed(self, x: Tensor) -> Tensor:
        """(b c h w) images -> (b h w c) patches."""
        pad_h, pad_w = (-side % self.patch_size for side in x.shape[-2:])
        return cast(Tensor, self.patch_embed(F.pad(x, (0, pad_w, 0, pad_h))))


class SwinStage(nn.Module):
    """Patch merging (none in the first stage), then blocks; made of a timm stage."""

    def __init__(self, stage: SwinTransformerStage) -> None:
        super().__init__()
        self.downsample = stage.downsample
        self.blocks = nn.Sequential(*(SwinBlock(cast(SwinTransformerBlock, block)) for block in stage.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(b h w c) -> (b h/2 w/2 2c)"""
        return cast(Tensor, self.blocks(self.downsample(x)))


class SwinBlock(Recomputable):
    """Window attention and MLP, each with a residual: a timm block's parts, as if padded before they are rolled."""

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        if block.window_size[0] != block.window_size[1]:
            raise ValueError(f"Swin needs square windows, got {tuple(block.window_size)}")
        self.window, self.shift = block.window_size[0], block.shift_size[0]
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2

    def forward(self, x: Tensor) -> Tensor:
        """(b h w c) -> (b h w c)"""
        x = x + self.drop_path1(self.window_attention(self.norm1(x)))
        return cast(Tensor, x + self.drop_path2(self.mlp(self.norm2(x))))

    def window_attention(self, x: Tensor) -> Tensor:
        """(b h w c) -> (b h w c), of tokens only.

        The release pads the map with zeros, lets padding take part as keys and values, and cuts it off. A key and a
        value of zeros are the biases of their layer, the same in every place: one of them stands for all padding of a
        window (`with_padding`), whatever its share of the window, and no other padding is computed.
        """
        plan = self.plan(x)
        x = narrow(x)
        if self.shift:
            x = x.roll((-plan.roll[0], -plan.roll[1]), (1, 2))
        mixed = [
            _join([self.mix(part, group) for part, group in zip(_cut(strip, plan.columns, 2), groups, strict=True)], 2)
            for strip, groups in zip(_cut(self.attn.qkv(x), plan.rows, 1), plan.groups, strict=True)
        ]
        x = _join(mixed, 1)
        if self.shift:
            x = x.roll(plan.roll, (1, 2))
        return cast(Tensor, self.attn.proj_drop(self.attn.proj(x)))

    def plan(self, x: Tensor) -> WindowPlan:
        """Which windows a map (b h w c) falls into."""
        table = self.attn.relative_position_bias_table
        return window_plan(x.shape[1], x.shape[2], self.window, self.shift, x.device, table.dtype)

    def mix(self, qkv: Tensor, group: WindowGroup) -> Tensor:
        """Queries, keys and values of a group's tokens (b rows columns 3c) -> what each gathers (b rows columns c)."""
        rows, columns = group.rows.windows, group.columns.windows
        qkv = qkv.unflatten(3, (3, self.attn.num_heads, -1)).unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)  # (3 b rows columns heads h w d): h x w tokens in every window
        height, width = qkv.shape[5:7]
        query, key, value = qkv.flatten(5, 6).flatten(2, 4).unbind(0)  # (b windows*heads n d)
        bias = self.group_bias(group)
        if height * width < self.window**2:
            key, value = self.with_padding(key, value, group)
        mixed = attend(query, key, value, bias, self.attn.scale)
        mixed = mixed.unflatten(2, (height, width)).unflatten(1, (rows, columns, -1))  # (b rows columns heads h w d)
        return cast(Tensor, mixed.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2))

    def with_padding(self, key: Tensor, value: Tensor, group: WindowGroup) -> tuple[Tensor, Tensor]:
        """One more key and value, of all padding: two of (b windows*heads n+1 d)"""
        _, key_bias, value_bias = self.attn.qkv.bias.to(key.dtype).unflatten(0, (3, self.attn.num_heads, 1, -1))
        key, value = (
            torch.cat([x, bias.repeat(group.num_windows, 1, 1).expand(x.shape[0], -1, -1, -1)], 2)
            for x, bias in ((key, key_bias), (value, value_bias))
        )
        return key, value

    def group_bias(self, group: WindowGroup) -> Tensor:
        """Relative position bias, and the mask where windows are shifted: (windows*heads n n+1), n without padding.

        The last key stands for all padding. Equal keys with biases b1, b2, ... weigh as much as one with
        log(exp(b1) + exp(b2) + ...).
        """
        bias = self.attn.relative_position_bias_table[group.position_index].permute(2, 0, 1)  # (heads n w2)
        if group.mask is not None:
            bias = group.mask + bias  # (windows heads n w2)
        n, w2 = bias.shape[-2:]
        if n < w2:
            bias = torch.cat([bias[..., :n], bias[..., n:].logsumexp(-1, keepdim=True)], -1)
        return bias.repeat(group.num_windows, 1, 1) if group.mask is None else bias.flatten(0, 1)

    def attention(self, x: Tensor) -> Attention:
        """(b h w c) -> attention weights of whole windows, padding too."""
        grid = (x.shape[1], x.shape[2])
        windows, padded = self.windows(self.norm1(x))
        query, key, _ = self.query_key_value(windows)
        weights = (query @ key.mT * self.attn.scale + self.bias(padded, x)).softmax(-1)
        places = places_in_windows(grid, self.window, shift=self.shift, device=x.device)
        return Attention(weights.unflatten(1, (len(places), self.attn.num_heads)), places, places, grid)

    def windows(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(b h w c) -> (b windows w2 c), and the map's (p, q) after padding: zeros, after the norm, before the roll."""
        side = self.window
        x = F.pad(x, (0, 0, 0, -x.shape[2] % side, 0, -x.shape[1] % side))
        padded = (x.shape[1], x.shape[2])
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (b p/s s q/s s c)
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2), padded

    def query_key_value(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b windows w2 c) -> three of (b windows*heads w2 c/heads)

        Windows and heads share an axis, so that one bias per window and head serves all images.
        """
        qkv = self.attn.qkv(windows).unflatten(-1, (3, self.attn.num_heads, -1))  # (b windows w2 3 heads d)
        return cast(tuple[Tensor, Tensor, Tensor], qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0))

    def bias(self, padded: tuple[int, int], like: Tensor) -> Tensor:
        """Relative position bias, and the mask where windows are shifted: (windows*heads w2 w2)."""
        table = self.attn.relative_position_bias_table[cast(Tensor, self.attn.relative_position_index)]  # (w2 w2 heads)
        bias = table.permute(2, 0, 1)
        num_windows = (padded[0] // self.window) * (padded[1] // self.window)
        if not self.shift:
            return bias.repeat(num_windows, 1, 1)
        mask = shifted_window_mask(*padded, self.window, self.shift, like.device, bias.dtype)
        return (mask[:, None] + bias).flatten(0, 1)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale * query key^T + bias) value, for queries (b heads n d), keys (b heads m d) and a bias that learns.

    On a CPU torch's fused kernel takes no such bias, and what it falls back to is slower than the formula.
    """
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    return (query * scale @ key.mT + bias).softmax(-1) @ value


def _cut(x: Tensor, strips: Sequence[Strip], dim: int) -> tuple[Tensor, ...]:
    return cast(tuple[Tensor, ...], x.split([strip.length for strip in strips], dim))


def _join(parts: list[Tensor], dim: int) -> Tensor:
    """The way back of `_cut`; nothing is copied where there was nothing to cut."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released parameter names of a Swin without its heads -> ours, which are timm's.

    The release merges patches at the end of a stage, timm at the beginning of the next. Tables that follow from the
    window are left out.
    """
    return {
        re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", name): value
        for name, value in state.items()
        if not name.endswith(("relative_position_index", "attn_mask"))
    }


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back of `from_released`, in the order of the released model's parameters."""
    released: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("downsample.reduction.weight"):
            continue  # it stands in front of its norm there
        if merging := re.fullmatch(r"layers\.(\d+)\.downsample\.norm\.weight", name):
            earlier = f"layers.{int(merging[1]) - 1}.downsample.reduction.weight"
            released[earlier] = state[name.replace("norm", "reduction")]
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)
        released[name] = value
        if name.endswith("relative_position_bias_table"):
            side = (isqrt(len(value)) + 1) // 2
            released[name.replace("bias_table", "index")] = get_relative_position_index(side, side)
    return released


def _fan_in(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
