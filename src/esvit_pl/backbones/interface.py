"""What every backbone promises, whatever its family."""

# b images | c channels | h, w rows and columns of the region map | n = h * w regions

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from esvit_pl.backbones.recompute import Recomputable


class Features(NamedTuple):
    """What a backbone sees in a batch of images."""

    pooled: Tensor
    """(b width): one vector per image."""
    regions: Tensor
    """(b n region_width): the tokens of the last stage after the last norm, row by row."""
    grid: tuple[int, int]
    """(h, w) of the region map."""


class Attention(NamedTuple):
    """Attention weights of one block, after the softmax."""

    weights: Tensor
    """(b heads n n); for windowed blocks (b windows heads w2 w2), windows row by row."""
    grid: tuple[int, int]
    """(h, w) of the token map, or of the map of windows."""


class Backbone(nn.Module):
    """Base class of all backbones. Sub-classes set the four attributes and write the four methods.

    Blocks that inherit from `Recomputable` make `set_grad_checkpointing` work.

    Attributes:
        width: channels of the pooled feature.
        region_width: channels of a region.
        patch_size: side of a patch in pixels; no crop may be smaller.
        spec: the plain dict from which ``backbones.build(**spec)`` makes the same backbone again.
        transform: from one image to the (c h w) tensor that the backbone was trained on; ``load_backbone`` sets it.
    """

    width: int
    region_width: int
    patch_size: int
    spec: dict[str, Any]
    transform: Callable[[Any], Tensor] | None = None

    def forward(self, x: Tensor) -> Features:
        """(b c h w) normalised images of any size -> features."""
        raise NotImplementedError

    def last_blocks(self, x: Tensor, n: int) -> Tensor:
        """(b c h w) -> (b last_blocks_width(n)): pooled features of the last n blocks, earliest first.

        The input of the linear probe (docs/recipes.md, "Evaluation").
        """
        raise NotImplementedError

    def last_blocks_width(self, n: int) -> int:
        """Channels that ``last_blocks(x, n)`` returns."""
        raise NotImplementedError

    def attention(self, x: Tensor, block: int = -1) -> Attention:
        """Attention weights of one block, counted over all stages; -1 is the last."""
        raise NotImplementedError(
            f"{type(self).__name__} has no attention weights to show; Swin, CvT, ViL's full blocks, ViT and DeiT have "
            "(backbone=swin_tiny_w7, cvt_tiny_w7, vil_tiny, vit_base_p16, deit_small_p16)"
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let backward compute each block again instead of keeping what is inside: less memory, one more forward.

        Nothing else changes, to the last bit. It works in training mode with gradients, and nowhere else.

        Raises:
            ValueError: the backbone has no block that can be computed again.
        """
        blocks = [module for module in self.modules() if isinstance(module, Recomputable)]
        if enable and not blocks:
            raise ValueError(
                f"{type(self).__name__} has no blocks that can be computed again; let them inherit from "
                "esvit_pl.backbones.Recomputable, or leave grad_checkpointing=false"
            )
        for block in blocks:
            block.grad_checkpointing = enable

    def check_compiles(self) -> None:
        """Refuse ``torch.compile`` where it could not keep a forward in one graph.

        Raises:
            ValueError: the reason, and what to do.
        """


def width_of_last(n: int, widths: Sequence[int], depths: Sequence[int]) -> int:
    """Channels of the last `n` blocks side by side, from the width and the number of blocks of each stage."""
    check_block_count(n, sum(depths))
    return sum([width for width, depth in zip(widths, depths, strict=True) for _ in range(depth)][-n:])


def check_block_count(n: int, available: int) -> None:
    """Refuse a number of last blocks that the backbone does not have."""
    if not 1 <= n <= available:
        raise ValueError(f"last_blocks needs n between 1 and the backbone's {available} blocks, got {n}")
