"""The numbers that say what happens to an image before the network sees it. Nothing is computed here.

The defaults are the released EsViT recipe on ImageNet (two global crops of 224 px, eight local ones of 96 px).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

Range = tuple[float, float]


@dataclass(frozen=True)
class ViewRecipe:
    """One view of an image: its size, the share of the image that it may show, and the probability of each change.

    `noise` is a largest standard deviation and `mask_cell` a number of pixels, as in `Recipe`.

    >>> ViewRecipe(size=96, scale=(0.05, 0.4), blur=0.5).jitter
    0.0
    """

    size: int
    scale: Range
    jitter: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0
    noise: float = 0.0
    mask_cell: int = 0


@dataclass(frozen=True)
class Recipe:
    """Multi-crop views for pretraining, the linear probe's training crop, and the evaluation crop.

    Scales are shares of the image's area, aspects are width / height, probabilities and pixel values lie in 0-1.

    >>> recipe = Recipe(num_local=[4, 4], local_size=[96, 64], normalize="image")
    >>> recipe.sizes
    (224, 224, 96, 96, 96, 96, 64, 64, 64, 64)

    Args:
        num_global, global_size, global_scale: the views that student and teacher see; size in pixels.
        num_local, local_size, local_scale: the views that only the student sees; 0 for none. Lists of equal length make
            several kinds of local crops, e.g. `[4, 4]`, `[96, 64]`, `[[0.2, 0.4], [0.05, 0.2]]`. A single number or
            range holds for every kind.
        aspect, flip: range of the aspect (drawn log-uniformly), probability of a mirror image.
        jitter: probability of the colour jitter, whose factors are drawn from 1 - x to 1 + x for `brightness`,
            `contrast`, `saturation`, and from -x to x turns of the colour circle for `hue`, applied in random order.
        grayscale: probability.
        global_blur, local_blur, blur_radius: probability of Gaussian blur, and the range of its standard deviation in
            pixels (Pillow's radius). `global_blur` has one entry for each global view; the last one also holds for any
            further views.
        global_solarize, local_solarize: probability that values of 128/255 and above are inverted; entries as above.
        noise: Gaussian noise is added to the finished view; its standard deviation is drawn from 0 to `noise`, in units
            of the normalised view. 0 for none. All channels get the same noise.
        mask_cell: side in pixels of the cells that a mask hides in global views: that of the backbone's regions (32 for
            a Swin of four stages, 16 for a ViT with patches of 16). 0 draws no masks.
        mask_chance: probability that a global view gets a mask that hides anything.
        mask_ratio: range of the share of the cells that such a mask hides.
        mask_shape: "cells" hides single cells, "blocks" rectangles of at least a ninth of the view.
        mean, std: of each channel, for `normalize="dataset"`. Three numbers each, or one: then every view becomes one
            channel of grey after its colour changes, whatever `normalize` says.
        normalize: "dataset" subtracts `mean` and divides by `std`; "image" takes both numbers from the whole image
            before crop and colour; "view" from each finished view.
        eval_resize, eval_crop: evaluation resizes the shorter side to the first and cuts the second from the centre.
        eval_interpolation: "bicubic" or "bilinear", for that resize.
        eval_squash: evaluation resizes both sides to `eval_resize`, whatever the image's aspect.
        supervised_size, supervised_scale: the random resized crop that the linear probe trains on, with `flip` and
            without colour changes.

    Raises:
        ValueError: a size below 1 pixel, a negative number, a probability above 1, a range that is empty or outside
            its limits, lists of different lengths, an unknown `normalize`.
    """

    num_global: int = 2
    global_size: int = 224
    global_scale: Range = (0.4, 1.0)
    num_local: int | Sequence[int] = 8
    local_size: int | Sequence[int] = 96
    local_scale: Range | Sequence[Range] = (0.05, 0.4)
    aspect: Range = (0.75, 1.3333333333333333)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    global_blur: Sequence[float] = (1.0, 0.1)
    local_blur: float = 0.5
    blur_radius: Range = (0.1, 2.0)
    global_solarize: Sequence[float] = (0.0, 0.2)
    local_solarize: float = 0.0
    noise: float = 0.0
    mask_cell: int = 0
    mask_chance: float = 0.5
    mask_ratio: Range = (0.1, 0.5)
    mask_shape: str = "blocks"
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    normalize: str = "dataset"
    eval_resize: int = 256
    eval_crop: int = 224
    eval_interpolation: str = "bicubic"
    eval_squash: bool = False
    supervised_size: int = 224
    supervised_scale: Range = (0.08, 1.0)

    def __post_init__(self) -> None:
        for field in fields(self):  # lists, which also come from config files, become tuples
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        if self.num_global < 1:
            raise ValueError(f"num_global must be 1 or more, got {self.num_global}")
        for name in ("global_size", "eval_resize", "eval_crop", "supervised_size"):
            _check_size(name, getattr(self, name))
        if self.eval_crop > self.eval_resize:
            raise ValueError(f"eval_crop must be at most eval_resize, got {self.eval_crop} and {self.eval_resize}")
        if self.eval_interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"eval_interpolation must be 'bicubic' or 'bilinear', got {self.eval_interpolation!r}")
        for name in ("global_scale", "supervised_scale"):
            _check_range(name, getattr(self, name), 1.0)
        _check_range("aspect", self.aspect, float("inf"))
        _check_range("blur_radius", self.blur_radius, float("inf"))
        for number, size, scale in self.local_kinds:
            if number < 0:
                raise ValueError(f"num_local must be 0 or more, got {self.num_local}")
            _check_size("local_size", size)
            _check_range("local_scale", scale, 1.0)
        if not isinstance(self.mask_cell, int) or self.mask_cell < 0:
            raise ValueError(f"mask_cell must be a side in pixels, or 0 for no masks, got {self.mask_cell}")
        _check_range("mask_ratio", self.mask_ratio, 1.0)
        if self.mask_shape not in ("cells", "blocks"):
            raise ValueError(f"mask_shape must be 'cells' or 'blocks', got {self.mask_shape!r}")
        for name in (
            "mask_chance",
            "flip",
            "jitter",
            "grayscale",
            "local_blur",
            "local_solarize",
            "global_blur",
            "global_solarize",
        ):
            _check_probability(name, getattr(self, name))
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie between 0 and {most:g}, got {getattr(self, name)}")
        if self.noise < 0:
            raise ValueError(f"noise must be 0 or more, got {self.noise}")
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean) or min(self.std) <= 0:
            raise ValueError(
                "mean and std need three numbers each (or one each, for grey images), std positive, "
                f"got {self.mean} and {self.std}"
            )
        if self.normalize not in ("dataset", "image", "view"):
            raise ValueError(f"normalize must be 'dataset', 'image' or 'view', got {self.normalize!r}")

    @property
    def local_kinds(self) -> list[tuple[int, int, Range]]:
        """(number, size, scale) of every kind of local crop, single values repeated for each kind."""
        local = {"num_local": self.num_local, "local_size": self.local_size, "local_scale": self.local_scale}
        single = {name: not isinstance(value, tuple) for name, value in local.items()}
        single["local_scale"] = bool(self.local_scale) and not isinstance(self.local_scale[0], tuple)
        lengths = {name: len(value) for name, value in local.items() if not single[name]}  # type: ignore[arg-type]
        if len(set(lengths.values())) > 1:
            got = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(f"num_local, local_size and local_scale need lists of equal length, got: {got}")
        kinds = next(iter(lengths.values()), 1)
        columns = [[value] * kinds if single[name] else value for name, value in local.items()]
        return list(zip(*columns, strict=True))

    @property
    def views(self) -> tuple[ViewRecipe, ...]:
        """Every view of one image, the global ones first."""
        shared: dict[str, Any] = {"jitter": self.jitter, "grayscale": self.grayscale, "noise": self.noise}
        views = [
            ViewRecipe(
                self.global_size,
                self.global_scale,
                blur=_entry(self.global_blur, view),
                solarize=_entry(self.global_solarize, view),
                mask_cell=self.mask_cell,
                **shared,
            )
            for view in range(self.num_global)
        ]
        for number, size, scale in self.local_kinds:
            local = ViewRecipe(size, scale, blur=self.local_blur, solarize=self.local_solarize, **shared)
            views += [local] * number
        return tuple(views)

    @property
    def supervised_view(self) -> ViewRecipe:
        """The linear probe's training view: crop and flip alone."""
        return ViewRecipe(self.supervised_size, self.supervised_scale)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The side of every view in pixels, in the order of `views`."""
        return tuple(view.size for view in self.views)

    @property
    def channels(self) -> int:
        """Channels of a view: 3, or 1 for grey images."""
        return len(self.mean)


def _plain(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_plain(entry) for entry in value)
    return value


def _entry(values: Sequence[float], view: int) -> float:
    return values[min(view, len(values) - 1)]


def _check_size(name: str, size: Any) -> None:
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{name} must be a whole number of pixels, 1 or more, got {size}")


def _check_range(name: str, limits: Any, most: float) -> None:
    if not isinstance(limits, tuple) or len(limits) != 2 or not 0 < limits[0] <= limits[1] <= most:
        wanted = f"two numbers, 0 < low <= high{'' if most == float('inf') else f' <= {most:g}'}"
        raise ValueError(f"{name} must be {wanted}, got {limits}")


def _check_probability(name: str, value: Any) -> None:
    entries = value if isinstance(value, tuple) else (value,)
    if not entries or not all(0 <= entry <= 1 for entry in entries):
        raise ValueError(f"{name} must be a probability between 0 and 1 (one for each global view), got {value}")
