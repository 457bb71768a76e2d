"""iGPT (Chen et al., ICML 2020): a GPT-2 that reads the colours of a small image row by row, and knows no columns.

What it learns with is `loss=igpt`: the colour that comes next. No weights of the authors are read.
"""

# b images | n = side * side pixels of the raster | d channels

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.activations import GELUTanh
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from esvit_pl.backbones.interface import Backbone, Features, Regions, check_block_count, check_stage
from esvit_pl.backbones.recompute import Recomputable
from esvit_pl.losses.masked import color_classes
from esvit_pl.specs import spec_of

EPS = 1e-5


class IGPT(Backbone):
    """A causal transformer over the pixels of a raster, each of which is one of ``2 ** (3 bits)`` colours.

    An image of any size and shape is averaged to the raster. Token i is the colour of pixel i - 1 (a start token stands
    before the first), so what the last block makes of it can say pixel i and has not seen it. The pooled feature is
    the mean over tokens after a middle block, where the source finds the best features; regions are the last block's.

    Args:
        width: d.
        depth: blocks.
        num_heads: of each block.
        side: of the raster, in pixels.
        bits: of each channel of a colour: 3 make 512 colours, a uniform grid. The authors' 512 colours are k-means of
            ImageNet's.
        block: after how many blocks features are pooled; None for half of them. A loss that reads the pooled feature
            alone (``loss=view``) needs ``block=depth``, or the blocks behind learn nothing.
        mean, std: with which images are normalised (``augment.mean``, ``augment.std``), one number for each channel.

    Raises:
        ValueError: sizes that do not fit together.

    >>> igpt = IGPT(width=8, depth=2, num_heads=2, side=4)
    >>> features = igpt(torch.zeros(2, 3, 32, 32))
    >>> tuple(features.pooled.shape), tuple(features.regions.shape), features.grid
    ((2, 8), (2, 16, 8), (4, 4))
    """

    def __init__(
        self,
        *,
        width: int = 512,
        depth: int = 24,
        num_heads: int = 8,
        side: int = 32,
        bits: int = 3,
        block: int | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.spec = spec_of("igpt", locals())
        _check(self.spec)
        self.block = depth // 2 if block is None else block
        self.width = self.region_width = width
        self.patch_size = 1
        self.num_colors = 2 ** (bits * len(mean))
        self.colors = nn.Embedding(self.num_colors, width)
        self.start = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(side**2, width))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.initialise()

    def initialise(self) -> None:
        """Normal, 0.02; what is added to the stream begins smaller, by the root of the number of sums, as in GPT-2."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1 or name == "start":
                added = name.endswith(("proj.weight", "fc2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * len(self.blocks)) if added else 0.02)

    def raster(self, x: Tensor) -> Tensor:
        """(b c h w) normalised images -> (b n): the colours that the network reads and predicts, row by row."""
        return self.rasterizer()(x)

    def rasterizer(self) -> Callable[[Tensor], Tensor]:
        """`raster` as a function that does not hold the backbone."""
        return partial(color_raster, **{name: self.spec[name] for name in ("side", "bits", "mean", "std")})

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        if mask is not None:
            self.learn_mask()  # raises, and names the families that take masks
        pooled = tokens = x
        for number, tokens in enumerate(self.tokens(x), start=1):
            if number == self.block:
                pooled = self.read_by(number)(tokens).mean(1)
        return Features(pooled, self.read_by(number)(tokens), (self.spec["side"],) * 2)

    def tokens(self, x: Tensor) -> Iterator[Tensor]:
        """The stream (b n d) after every block."""
        colors = self.colors(self.raster(x)[:, :-1])  # (b n-1 d)
        tokens = torch.cat([self.start.expand(len(x), 1, -1).to(colors.dtype), colors], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
            yield tokens

    def read_by(self, number: int) -> nn.Module:
        """The norm through which the stream is read after so many blocks: the next block's first, or the last one."""
        return self.blocks[number].get_submodule("norm1") if number < len(self.blocks) else self.norm

    def block_features(self, x: Tensor) -> Iterator[Features]:
        """What is seen after every block. The last is that of `forward`, but for the pooled feature."""
        for number, tokens in enumerate(self.tokens(x), start=1):
            z = self.read_by(number)(tokens)
            yield Features(z.mean(1), z, (self.spec["side"],) * 2)

    def last_blocks(self, x: Tensor, n: int) -> Tensor:
        """(b c h w) -> (b n * d): pooled features of the n blocks that end with the one that is pooled."""
        return self.features_and_blocks(x, n)[1]

    def features_and_blocks(self, x: Tensor, n: int) -> tuple[Features, Tensor]:
        check_block_count(n, self.block)
        blocks = [*self.block_features(x)]
        wanted = [block.pooled for block in blocks[self.block - n : self.block]]
        return blocks[-1]._replace(pooled=wanted[-1]), torch.cat(wanted, dim=-1)

    def last_blocks_width(self, n: int) -> int:
        check_block_count(n, self.block)
        return n * self.width

    @property
    def num_stages(self) -> int:
        return len(self.blocks)

    def stage_regions(self, x: Tensor, stage: int = -1) -> Regions:
        features = next(islice(self.block_features(x), check_stage(stage, self.num_stages), None))
        return Regions(features.regions, features.grid)

    def depths(self) -> dict[str, int]:
        places = {name: re.match(r"blocks\.(\d+)\.", name) for name, _ in self.named_parameters()}
        return {
            name: int(found[1]) + 1 if found else len(self.blocks) if name.startswith("norm.") else 0
            for name, found in places.items()
        }


class Block(Recomputable):
    """Attention to oneself and to what came before, then an MLP of four times the width; norms have gains alone."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.RMSNorm(width, eps=EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.RMSNorm(width, eps=EPS)
        self.mlp = Mlp(width, 4 * width, act_layer=GELUTanh)

    def forward(self, x: Tensor) -> Tensor:
        """(b n d) -> (b n d)"""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3 b heads n d')
        query, key, value = qkv.unbind()
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def color_raster(x: Tensor, *, side: int, bits: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(b c h w) normalised images -> (b side*side): the mean colour under each pixel of a raster, as a class.

    >>> color_raster(torch.ones(1, 3, 8, 8), side=2, bits=1, mean=[0.5] * 3, std=[0.5] * 3)  # white
    tensor([[7, 7, 7, 7]])
    """
    spread, middle = (x.new_tensor(values)[:, None, None] for values in (std, mean))
    return color_classes(F.adaptive_avg_pool2d(x * spread + middle, side), (side, side), bits=bits)


def _check(spec: dict[str, Any]) -> None:
    for name in ("width", "depth", "num_heads", "side", "bits"):
        if spec[name] < 1:
            raise ValueError(f"IGPT needs a positive {name}, got {spec[name]}")
    if spec["width"] % spec["num_heads"]:
        raise ValueError(f"IGPT's width must be a multiple of num_heads, got {spec['width']} and {spec['num_heads']}")
    if spec["depth"] < 2 or not 1 <= (spec["block"] or 1) <= spec["depth"]:
        raise ValueError(
            f"IGPT needs two blocks or more, and a block to pool between 1 and depth; got depth={spec['depth']} and "
            f"block={spec['block']}"
        )
    if not len(spec["mean"]) == len(spec["std"]):
        raise ValueError(f"IGPT needs a mean and a std for each channel, got {spec['mean']} and {spec['std']}")
