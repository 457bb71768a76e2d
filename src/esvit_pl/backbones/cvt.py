"""CvT (Wu et al., arXiv 2103.15808) with window attention and the arithmetic of the EsViT release.

Only the zero padding of the convolutions tells positions apart: there is no position table, no class token and no shift
of the windows. docs/recipes.md, "CvT", has the numbers.
"""

# b images | h, w rows and columns of a map | p, q the same after padding | s side of a window | w2 = s * s | c channels
# d = c / heads

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from esvit_pl.backbones.interface import Attention, Features, Regions, check_stage, places_in_windows
from esvit_pl.backbones.recompute import Recomputable
from esvit_pl.backbones.stages import StagedBackbone, check_sizes, drop_path_rates
from esvit_pl.specs import spec_of

EPS = 1e-5


class CvT(StagedBackbone):
    """A CvT of any size, for images of 4 px and more.

    >>> cvt = CvT(dims=[8, 16], depths=[1, 1], num_heads=[1, 2], windows=[7, 7])
    >>> features = cvt(torch.randn(2, 3, 64, 64))
    >>> tuple(features.pooled.shape), tuple(features.regions.shape), features.grid
    ((2, 16), (2, 64, 16), (8, 8))

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        windows: side of an attention window in tokens, for each stage. A map with a shorter side gets windows of that
            side. As in the release, this is decided for each input.
        in_chans: channels of the images.
        mlp_ratio: width of the MLP's hidden layer, divided by the block's width.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first (docs/recipes.md).

    There is a batch norm in front of queries, keys and values. Student and teacher have their own running statistics,
    from the views that each of them sees. On several GPUs set ``trainer.sync_batchnorm=true``, as released.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int] = (64, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (1, 3, 6, 12),
        windows: Sequence[int] = (7, 7, 7, 7),
        in_chans: int = 3,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.spec = spec_of("cvt", locals())
        self.stage_widths = list(dims)
        check_sizes(
            "CvT",
            self.spec,
            self.stage_widths,
            per_stage=("dims", "depths", "num_heads", "windows"),
            positive=("in_chans", "mlp_ratio"),
        )
        self.patch_size = 4
        self.stages = nn.ModuleList()
        sizes = zip(dims, num_heads, windows, drop_path_rates(self.spec), strict=True)
        for stage, (width, heads, window, rates) in enumerate(sizes):
            if stage == 0:
                embed = Embedding(in_chans, width, kernel=7, stride=self.patch_size, padding=2)
            else:
                embed = Embedding(dims[stage - 1], width, kernel=3, stride=2, padding=1)
            blocks = [Block(width, heads, window, int(mlp_ratio * width), rate) for rate in rates]
            self.stages.append(Stage(embed, blocks))
        self.norm = LayerNorm2d(dims[-1], eps=EPS)
        self.apply(_initialise)
        self.width = self.region_width = dims[-1]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        if mask is not None:
            self.learn_mask()  # raises, and names the families that take masks
        regions, grid = self.stage_regions(x)
        return Features(regions.mean(1), regions, grid)

    def freeze_embedding(self) -> None:
        self.get_submodule("stages.0.embed.proj").requires_grad_(False)

    def stage_regions(self, x: Tensor, stage: int = -1) -> Regions:
        last = check_stage(stage, self.num_stages) + 1
        for module in self.stages[:last]:
            x = module(x)
        x = self.norm(x) if last == self.num_stages else x
        return Regions(x.flatten(2).mT, (x.shape[2], x.shape[3]))  # (b n c)

    def block_features(self, x: Tensor) -> Iterator[Features]:
        for module in self.stages:
            stage = cast(Stage, module)
            x = stage.embed(x)
            for block in stage.blocks:
                x = block(x)
                z = self.norm(x) if stage is self.stages[-1] else x
                yield Features(z.mean((2, 3)), z.flatten(2).mT, (z.shape[2], z.shape[3]))

    def block_of(self, parameter: str) -> tuple[int, int] | None:
        found = re.match(r"stages\.(?!0\.embed)(\d+)\.(?:blocks\.(\d+)|embed)\.", parameter)
        return None if found is None else (int(found[1]), int(found[2] or 0))

    def attention(self, x: Tensor, block: int = -1) -> Attention:
        index, inside = self.place_of(block)
        for earlier in self.stages[:index]:
            x = earlier(x)
        stage = cast(Stage, self.stages[index])
        return cast(Block, stage.blocks[inside]).attention(stage.blocks[:inside](stage.embed(x)))


class Embedding(nn.Module):
    """A strided convolution, then a norm over the channels of each position."""

    def __init__(self, in_chans: int, width: int, *, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, width, kernel, stride, padding)
        self.norm = LayerNorm2d(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b width h/stride w/stride)"""
        out: Tensor = self.norm(self.proj(x))
        return out


class Stage(nn.Module):
    """Embedding, then blocks."""

    def __init__(self, embed: Embedding, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b width h/stride w/stride)"""
        out: Tensor = self.blocks(self.embed(x))
        return out


class Block(Recomputable):
    """Window attention and MLP, each with a residual that stochastic depth drops on its own."""

    def __init__(self, width: int, heads: int, window: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(width, eps=EPS)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = LayerNorm2d(width, eps=EPS)
        self.mlp = MLP(width, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b c h w)"""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def attention(self, x: Tensor) -> Attention:
        """(b c h w) -> the block's attention weights."""
        return self.attn.weights(self.norm1(x))


class WindowAttention(nn.Module):
    """Attention inside windows that do not overlap; queries, keys and values are made by convolution.

    Two peculiarities of the release: logits are scaled by the whole width ** -0.5, not by a head's width, and the zeros
    that fill up the last windows are added before the convolution and are attended to like any other token.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window, self.scale = heads, window, width**-0.5
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b c h w)"""
        (query, key, value), grid = self.query_key_value(x)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)  # (b*windows heads w2 d)
        out: Tensor = self.proj(self.unwindow(mixed, grid)[..., : x.shape[2], : x.shape[3]])
        return out

    def weights(self, x: Tensor) -> Attention:
        """(b c h w) -> the attention weights of whole windows, padding too."""
        grid = (x.shape[2], x.shape[3])
        (query, key, _), _ = self.query_key_value(x)
        weights = torch.unflatten((query @ key.mT * self.scale).softmax(-1), 0, (len(x), -1))
        places = places_in_windows(grid, isqrt(weights.shape[-1]), device=x.device)
        return Attention(weights, places, places, grid)

    def query_key_value(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        """(b c h w) -> three of (b*windows heads w2 d), and the map of windows (p/s, q/s)."""
        side = min(self.window, x.shape[2], x.shape[3])
        x = F.pad(x, (0, -x.shape[3] % side, 0, -x.shape[2] % side))  # (b c p q)
        qkv: Tensor = self.qkv(self.bn(self.depthwise(x)))  # (b 3c p q)
        for axis, parts in ((3, (-1, side)), (2, (-1, side)), (1, (3, self.heads, -1))):
            qkv = torch.unflatten(qkv, axis, parts)
        grid = (qkv.shape[4], qkv.shape[6])  # (b 3 heads d p/s s q/s s)
        return qkv.permute(1, 0, 4, 6, 2, 5, 7, 3).flatten(5, 6).flatten(1, 3).unbind(0), grid

    def unwindow(self, mixed: Tensor, grid: tuple[int, int]) -> Tensor:
        """(b*windows heads w2 d) -> (b c p q)"""
        side = isqrt(mixed.shape[2])
        x = torch.unflatten(torch.unflatten(mixed, 2, (side, side)), 0, (-1, *grid))  # (b p/s q/s heads s s d)
        return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class MLP(nn.Module):
    """Two Linear layers at each position, as 1 x 1 convolutions; between them CLIP's approximation of GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b c h w)"""
        x = self.fc1(x)
        out: Tensor = self.fc2(x * torch.sigmoid(1.702 * x))
        return out


RELEASED_PARTS = {
    "0.norm": "norm1",
    "0.fn.qkv.dw": "attn.depthwise",
    "0.fn.qkv.bn": "attn.bn",
    "0.fn.qkv.pw": "attn.qkv",
    "0.fn.proj_out": "attn.proj",
    "1.norm": "norm2",
    "1.fn.net.0": "mlp.fc1",
    "1.fn.net.2": "mlp.fc2",
}
"""A block's parts: name in the released checkpoints -> name here."""


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released parameter names of a CvT without its heads -> ours. Values and shapes are the same.

    A name that the published models do not have stays as it is, so that strict loading reports it.
    """
    renamed = {}
    for name, value in state.items():
        if embedding := re.fullmatch(r"stage(\d+)\.0\.(.+)", name):
            name = f"stages.{embedding[1]}.embed.{embedding[2]}"
        elif (block := re.fullmatch(r"stage(\d+)\.1\.layers\.(\d+)\.(.+)\.(\w+)", name)) and block[3] in RELEASED_PARTS:
            name = f"stages.{block[1]}.blocks.{block[2]}.{RELEASED_PARTS[block[3]]}.{block[4]}"
        renamed[name] = value
    return renamed


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `from_released`."""
    released = {ours: theirs for theirs, ours in RELEASED_PARTS.items()}
    renamed = {}
    for name, value in state.items():
        if embedding := re.fullmatch(r"stages\.(\d+)\.embed\.(.+)", name):
            name = f"stage{embedding[1]}.0.{embedding[2]}"
        elif block := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)\.(\w+)", name):
            name = f"stage{block[1]}.1.layers.{block[2]}.{released.get(block[3], block[3])}.{block[4]}"
        renamed[name] = value
    return renamed


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
