"""Blocks of ViTs that timm does not have; a config names one of them as its `block_fn`."""

# b images | n tokens | c channels

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor, nn


class TokenBatchNorm(nn.Module):
    """Batch norm of tokens (b n c): one mean and deviation for each channel, over images and places.

    The norm lies inside, because ``trainer.sync_batchnorm=true`` replaces it.

    >>> import torch
    >>> TokenBatchNorm(1)(torch.tensor([[[0.0], [2.0]], [[2.0], [0.0]]])).flatten().round()
    tensor([-1.,  1.,  1., -1.], grad_fn=<RoundBackward0>)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn(x.flatten(0, 1))
        return normed.view_as(x)


class BatchNormMLPBlock(Block):
    """A block with batch norm before its MLP. The norm before the attention stays a layer norm: MoCo v3's "ViT-BN"
    (arXiv 2104.02057)."""

    def __init__(self, dim: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(dim, *args, **kwargs)
        self.norm2 = TokenBatchNorm(dim)


BLOCKS: dict[str, type[nn.Module]] = {"batch_norm_mlp": BatchNormMLPBlock}
"""Name in a config -> class."""
