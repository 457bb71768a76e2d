"""What every backbone promises, whatever its family."""

# b images | c channels | h, w rows and columns of the region map | n = h * w regions

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.backbones.recompute import Recomputable

HAVE_ATTENTION = (
    "Swin, CvT, ViL, ViT and DeiT have (backbone=swin_tiny_w7, cvt_tiny_w7, vil_tiny, vit_base_p16, deit_small_p16)"
)


class Features(NamedTuple):
    """What a backbone sees in a batch of images."""

    pooled: Tensor
    """(b width): one vector per image."""
    regions: Tensor
    """(b n region_width): the tokens of the last stage after the last norm, row by row."""
    grid: tuple[int, int]
    """(h, w) of the region map."""


class Regions(NamedTuple):
    """The region map of one stage."""

    regions: Tensor
    """(b n c), row by row."""
    grid: tuple[int, int]
    """(h, w) of the map."""


class Attention(NamedTuple):
    """Attention weights of one block, after the softmax, and where its tokens lie.

    Tokens that see each other make a window. A block where all see all has one.
    """

    # p prefix tokens | q queries of a window | k keys that they see
    weights: Tensor
    """(b windows heads q k), of the tokens of the map."""
    queries: Tensor
    """(windows q) long: which token of the map asks, row by row; -1 where the window reaches beyond the map."""
    keys: Tensor
    """(windows k) long: which token of the map is seen; -1 for padding, and for prefix tokens, which come first."""
    grid: tuple[int, int]
    """(h, w) of the token map."""
    prefix: Tensor | None = None
    """(b heads p p+n), of the tokens before the map (class, registers, globals), which see all; None without them."""

    @classmethod
    def of_all(cls, weights: Tensor, grid: tuple[int, int]) -> Attention:
        """Make it of (b heads p+n p+n), prefix tokens first: the weights of a block in which all tokens see all."""
        n = grid[0] * grid[1]
        p = weights.shape[-1] - n
        places = torch.arange(-p, n, device=weights.device).clamp(min=-1)[None]
        return cls(weights[:, None, :, p:], places[:, p:], places, grid, weights[:, :, :p] if p else None)


class Backbone(nn.Module):
    """Base class of all backbones. Subclasses set the first four attributes and write the methods.

    Blocks that inherit from `Recomputable` make `set_grad_checkpointing` work.

    Attributes:
        width: channels of the pooled feature.
        region_width: channels of a region.
        patch_size: side of a patch in pixels; no crop may be smaller.
        spec: the plain dict from which ``backbones.build(**spec)`` makes the same backbone again.
        transform: from one image to the (c h w) tensor that the backbone was trained on; ``load_backbone`` sets it.
        mask_vector: (c,) what stands for a masked patch, learnt; None before `learn_mask`.

    A small one, whose regions are the pixels of a smaller image:

    >>> class Shrunk(Backbone):
    ...     width = region_width = 3
    ...     patch_size = 8
    ...     spec = {"name": "shrunk"}
    ...     def forward(self, x, mask=None):
    ...         small = nn.functional.avg_pool2d(x, 8)
    ...         regions = small.flatten(2).mT
    ...         return Features(regions.mean(1), regions, (small.shape[2], small.shape[3]))
    >>> features = Shrunk()(torch.zeros(2, 3, 32, 16))
    >>> tuple(features.pooled.shape), tuple(features.regions.shape), features.grid
    ((2, 3), (2, 8, 3), (4, 2))
    """

    width: int
    region_width: int
    patch_size: int
    spec: dict[str, Any]
    transform: Callable[[Any], Tensor] | None = None
    mask_vector: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("mask_vector", None)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """(b c h w) normalised images of any size -> features.

        Args:
            x: the images.
            mask: (b h w) bool on the grid of the regions: where it is True, the embeddings of the patches are replaced
                by `mask_vector`. Only after `learn_mask`.
        """
        raise NotImplementedError

    def learn_mask(self) -> None:
        """Make `mask_vector`, a parameter that begins at 0.

        Raises:
            NotImplementedError: the family cannot hide patches.
        """
        raise NotImplementedError(
            f"{type(self).__name__} cannot hide patches from itself; Swin, ViT and DeiT can (backbone=swin_tiny_w7, "
            "vit_base_p16, deit_small_p16)"
        )

    def freeze_embedding(self) -> None:
        """Let what embeds the patches stay as it was drawn; the absolute positions of a ViT become sines and cosines.

        A convnet embeds no patches, and stays as it is.
        """

    def last_blocks(self, x: Tensor, n: int) -> Tensor:
        """(b c h w) -> (b last_blocks_width(n)): pooled features of the last n blocks, earliest first.

        The input of the linear probe (docs/recipes.md, "Evaluation").
        """
        raise NotImplementedError

    def last_blocks_width(self, n: int) -> int:
        """Channels that ``last_blocks(x, n)`` returns."""
        raise NotImplementedError

    def block_features(self, x: Tensor) -> Iterator[Features]:
        """(b c h w) -> what is seen after every block, earliest first, in one pass; the last is what `forward` gives.

        Blocks are those of `last_blocks`, and pooled as there. A family that does not say it has one.
        """
        yield self(x)

    def features_and_blocks(self, x: Tensor, n: int) -> tuple[Features, Tensor]:
        """(b c h w) -> what `forward` and what `last_blocks` give of them; in one pass where a family can."""
        return self(x), self.last_blocks(x, n)

    @property
    def num_stages(self) -> int:
        """How many region maps there are to choose from: stages; blocks of a plain ViT, whose maps are all alike."""
        return 1

    def stage_regions(self, x: Tensor, stage: int = -1) -> Regions:
        """(b c h w) -> the region map after one stage; -1 is the last, whose regions are those of `forward`.

        Earlier maps are as the next stage gets them: a norm behind them was never trained. Those of a plain ViT go
        through its last norm, as in `last_blocks`.

        Raises:
            ValueError: there is no such stage.
        """
        check_stage(stage, self.num_stages)
        features = self(x)
        return Regions(features.regions, features.grid)

    def attention(self, x: Tensor, block: int = -1) -> Attention:
        """Attention weights of one block, counted over all stages; -1 is the last.

        Raises:
            NotImplementedError: the family has no attention.
            ValueError: there is no such block.
        """
        raise NotImplementedError(f"{type(self).__name__} has no attention weights to show; {HAVE_ATTENTION}")

    def depths(self) -> dict[str, int]:
        """{name of a parameter: how deep it lies}, for learning rates that fall from layer to layer.

        0 is what embeds the patches, the first block is 1. What leads into a stage lies with the stage's first block,
        the last norm with the last block. A parameter that is not named lies beside a classifier.

        Raises:
            NotImplementedError: the family does not say it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say how deep its parameters lie (method depths); give all layers the same "
            "learning rate (layer_decay=1)"
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


def places_in_windows(grid: tuple[int, int], side: int, *, shift: int = 0, device: torch.device) -> Tensor:
    """(windows side*side) long: which token of a map lies where, after the map is padded right and bottom, rolled up
    and left by `shift`, and cut; -1 for padding."""
    h, w = grid
    places = F.pad(torch.arange(h * w, device=device).view(h, w), (0, -w % side, 0, -h % side), value=-1)
    places = torch.unflatten(places.roll((-shift, -shift), (0, 1)), 1, (-1, side))
    return torch.unflatten(places, 0, (-1, side)).transpose(1, 2).flatten(2).flatten(0, 1)


def hide(tokens: Tensor, mask: Tensor, vector: Tensor | None, *, factor: int = 1) -> Tensor:
    """(b h w c) patch embeddings, replaced by `vector` where the mask is True.

    Args:
        tokens: (b h w c).
        mask: (b h/factor w/factor) bool, on the grid of the regions; sides are rounded up.
        vector: (c,).
        factor: patches of a region along one side.

    Raises:
        ValueError: a mask for another number of images or another grid; no vector.
    """
    if vector is None:
        raise ValueError("the backbone got a mask and has no mask vector; call learn_mask() first")
    height, width = tokens.shape[1:3]
    wanted = (tokens.shape[0], -(-height // factor), -(-width // factor))
    if mask.shape != wanted:
        raise ValueError(
            f"a mask needs the shape {wanted}, images and the grid of regions, got {tuple(mask.shape)}; set "
            "augment.mask_cell to the side of a region in pixels"
        )
    mask = mask.repeat_interleave(factor, 1).repeat_interleave(factor, 2)[:, :height, :width]
    return torch.where(mask[..., None], vector.to(tokens.dtype), tokens)


def check_block_count(n: int, available: int) -> None:
    """Refuse a number of last blocks that the backbone does not have."""
    if not 1 <= n <= available:
        raise ValueError(f"last_blocks needs n between 1 and the backbone's {available} blocks, got {n}")


def check_stage(stage: int, available: int) -> int:
    """The number of a stage from 0 on; refuses one that the backbone does not have."""
    if not -available <= stage < available:
        raise ValueError(f"stage_regions needs a stage between {-available} and {available - 1}, got {stage}")
    return stage % available
