"""The evaluation view as a function of an image, as notebooks and torchvision's data sets want it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from esvit_pl.augment.evaluation import evaluation_view, whole_view
from esvit_pl.augment.recipe import Recipe
from esvit_pl.datasets.pixels import PixelRules, upright_tensor


@dataclass(frozen=True)
class EvaluationTransform:
    """Prepares one image for a backbone that was trained with this recipe, exactly as ``esvit-knn`` prepares it.

    >>> transform = EvaluationTransform(Recipe())
    >>> transform(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 224, 224])

    Args:
        recipe: only its evaluation settings and its normalisation are used.
        pixels: how PIL images of other than 8 bits and transparent ones become RGB. For floats, for example:
            ``dataclasses.replace(transform, pixels=PixelRules(value_range=(0, 1)))``.
    """

    recipe: Recipe
    pixels: PixelRules = field(default_factory=PixelRules)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """A PIL image of any mode, or a uint8 tensor (3 h w) -> float32 (c s s), s = `recipe.eval_crop`, normalised.

        Raises:
            ValueError: `image` is something else, or nothing says which of its values are black and white.
        """
        return evaluation_view(self.recipe, self.as_tensor(image))

    def whole(self, image: Image.Image | Tensor, *, side: int | None = None, multiple: int = 1) -> Tensor:
        """The same without the cut (`augment.whole_view`): float32 (c h w), for maps that lie over the whole image."""
        return whole_view(self.recipe, self.as_tensor(image), side=side, multiple=multiple)

    def as_tensor(self, image: Image.Image | Tensor) -> Tensor:
        """uint8 (3 h w), with the errors of `__call__`."""
        if isinstance(image, Image.Image):
            image = upright_tensor(image, self.pixels)
        if not isinstance(image, Tensor):
            raise ValueError(f"the transform takes a PIL image or a uint8 tensor (3 h w), got {type(image).__name__}")
        if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
            raise ValueError(
                f"the transform takes a uint8 tensor (3 h w), got {image.dtype} {tuple(image.shape)}; "
                "give one image with values 0-255, channels first"
            )
        return image
