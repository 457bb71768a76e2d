"""What a trained network is compared with: features that nobody learnt, in the shape of a backbone."""

# b images | c channels | s side in pixels

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.backbones.interface import Backbone, Features


class _Baseline(Backbone):
    """A backbone without parameters: one region, and one block that gives the pooled feature."""

    patch_size = 1

    def __init__(self, width: int, **spec: object) -> None:
        super().__init__()
        self.width = self.region_width = width
        self.spec = spec

    def describe(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b width)"""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Features:
        feature = self.describe(x)
        return Features(feature, feature[:, None], (1, 1))

    def last_blocks(self, x: Tensor, n: int) -> Tensor:
        """The pooled feature, whatever `n`."""
        return self.describe(x)

    def last_blocks_width(self, n: int) -> int:
        return self.width


class RawPixels(_Baseline):
    """The image itself, averaged down to `side` x `side` pixels where it is larger.

    Args:
        side: in pixels.
        channels: of the images.
    """

    def __init__(self, side: int = 32, channels: int = 3) -> None:
        if side < 1:
            raise ValueError(f"RawPixels needs a side of 1 pixel or more, got {side}")
        super().__init__(channels * side * side, name="raw_pixels", side=side, channels=channels)
        self.side = side

    def describe(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.side).flatten(1)


class GreyHistogram(_Baseline):
    """How often each grey level occurs: how far the distribution of grey alone goes, without any form.

    Square roots of the frequencies, so that a cosine compares two distributions (Bhattacharyya's coefficient), scaled
    to a mean square of 1.

    Args:
        bins: equal ones, from the image's own darkest to its brightest pixel: blind to brightness and contrast.
    """

    def __init__(self, bins: int = 16) -> None:
        if bins < 2:
            raise ValueError(f"GreyHistogram needs 2 bins or more, got {bins}")
        super().__init__(bins, name="grey_histogram", bins=bins)
        self.bins = bins

    def describe(self, x: Tensor) -> Tensor:
        grey = x.float().mean(1).flatten(1)  # (b pixels)
        low, high = torch.aminmax(grey, dim=1, keepdim=True)
        level = (grey - low) / (high - low + 1e-12) * self.bins
        counts = grey.new_zeros(len(x), self.bins)
        counts.scatter_add_(1, level.floor().clamp(0, self.bins - 1).long(), torch.ones_like(grey))
        return (counts * (self.bins / grey.shape[1])).sqrt()
