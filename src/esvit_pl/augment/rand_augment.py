"""RandAugment: random changes of colour and form for training with labels, by timm's part."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from esvit_pl.isolation import same_random_state
from esvit_pl.seeding import derive_seed

LONGEST_SHIFT = 0.45
"""The longest shift, as a share of the image's side. timm's and DeiT's trainings have this value."""


class RandAugment:
    """Random changes of an image: turned, sheared, shifted, brighter, sharper, fewer colours, ... (Cubuk et al., arXiv
    1909.13719), as timm's ``rand_augment_transform`` makes them.

    timm draws from the global generators of Python and numpy. They are seeded for each image and put back afterwards:
    the same parts give the same image in any process, and nothing else draws other numbers.

    >>> import torch
    >>> change = RandAugment("rand-m9-mstd0.5-inc1", size=32)
    >>> image = torch.arange(3 * 32 * 32).view(3, 32, 32).byte()
    >>> torch.equal(change(image, "seed", 0, "epoch", 3), change(image, "seed", 0, "epoch", 3))
    True

    Args:
        policy: timm's words, "rand" and more behind dashes: ``m9`` the magnitude of 0 to 10, ``mstd0.5`` its standard
            deviation, ``n2`` how many changes, ``p0.5`` the probability of each, ``inc1`` changes that grow with the
            magnitude. "rand-m9-mstd0.5-inc1" is DeiT's, Swin's and MAE's.
        size: side of the images in pixels.
        mean: 0-1 of each channel, or one number: the colour of what a turn or a shift leaves empty.

    Raises:
        ValueError: timm does not know the policy.
    """

    def __init__(self, policy: str, *, size: int, mean: Sequence[float] = (0.485, 0.456, 0.406)) -> None:
        from timm.data.auto_augment import rand_augment_transform

        fill = tuple(min(255, round(255 * value)) for value in (mean if len(mean) == 3 else [*mean] * 3))
        try:
            hparams = {"translate_const": int(LONGEST_SHIFT * size), "img_mean": fill}
            self.change = rand_augment_transform(policy, hparams)
        except (AssertionError, AttributeError, ValueError) as error:
            raise ValueError(
                f"rand_augment must be words of timm's RandAugment, such as 'rand-m9-mstd0.5-inc1', got {policy!r}"
            ) from error
        for change in self.change.ops:
            if change.name.startswith("Posterize"):
                change.aug_fn = _posterize

    def __call__(self, image: Tensor, *parts: int | str) -> Tensor:
        """uint8 (3 h w) -> uint8 (3 h w), as the parts determine (see `seeding.derive_seed`)."""
        with same_random_state():
            random.seed(derive_seed(*parts))
            np.random.seed(derive_seed(*parts) % 2**32)  # noqa: NPY002, timm draws from it
            changed: Tensor = pil_to_tensor(self.change(to_pil_image(image)))
        return changed


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """One bit is kept where timm asks for none, which made a black image with older Pillows and an error with newer."""
    return ImageOps.posterize(image, min(max(bits, 1), 8))
