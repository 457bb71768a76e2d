"""How fast images are read, cropped and coloured on one core, in several ways."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageFilter, ImageOps
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from esvit_pl import datasets
from esvit_pl.augment import Recipe, ViewRecipe
from esvit_pl.data import ImageDataModule
from esvit_pl.data.threads import one_thread
from esvit_pl.profiling.measure import seconds
from esvit_pl.profiling.photographs import photographs_in_a_folder

DECODE = "decode alone"
PIL_RECIPE = "PIL recipe"
WORKER_COLOR = "worker_color"
WORKER_REDUCED = "worker_color, reduced_decoding"
DEVICE_LOADER = "device_color, loader and transfer"
DEVICE_REDUCED = "device_color, loader and transfer, reduced_decoding"
DEVICE_COLOR = "device_color, with colour"


class CropRate(NamedTuple):
    """Of one way to make views, on one thread."""

    image: str
    """Width x height of the JPEGs in pixels."""
    way: str
    images_per_second: float
    """Median of the repeats."""
    ratio: float
    """Median over the repeats of this way's rate to that of the PIL recipe, each repeat compared within itself."""


def crop_rates(
    recipe: Recipe | None = None,
    *,
    image_sizes: Sequence[tuple[int, int]] = ((375, 500), (1500, 2000)),
    images: Sequence[int] = (64, 16),
    batch_size: int = 16,
    repeats: int = 5,
    device: str = "cpu",
) -> Iterator[CropRate]:
    """Rates of every way, for JPEGs of each size; the ways take turns, on one thread, without workers.

    "PIL recipe" is the same recipe as transforms of torchvision on PIL images, one view after the other.

    Args:
        recipe: `Recipe()`, the released one, if None.
        image_sizes: (height, width) of the JPEGs, which are made here (`photograph`).
        images: JPEGs of each size in one pass, whole batches.
        batch_size: images.
        repeats: passes over all images, after one to warm up.
        device: where `device_color` colours; views and crops are moved there.

    Raises:
        ValueError: numbers of images that are no whole batches, or not as many numbers as sizes.
    """
    if len(images) != len(image_sizes) or any(number < 1 or number % batch_size for number in images):
        raise ValueError(
            f"images needs a multiple of batch_size {batch_size} for each of the {len(image_sizes)} image sizes, "
            f"got {list(images)}"
        )
    for size, number in zip(image_sizes, images, strict=True):
        with photographs_in_a_folder(number, size) as folder, one_thread():
            ways = _ways(folder, recipe or Recipe(), batch_size, torch.device(device))
            rates: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(repeats + 1):
                for way, run in ways.items():
                    rates[way].append(number / seconds(run, device))
        for way, (_, *values) in rates.items():
            ratios = [one / two for one, two in zip(values, rates[PIL_RECIPE][1:], strict=True)]
            yield CropRate(as_words(size), way, median(values), median(ratios))


def as_words(size: tuple[int, int]) -> str:
    """(height, width) as ``width x height``"""
    return f"{size[1]} x {size[0]}"


class PILViews(Dataset[list[Tensor]]):
    """The recipe (with `normalize="dataset"`, three channels, no noise) as it is usually written."""

    def __init__(self, paths: list[Path], recipe: Recipe) -> None:
        self.paths = paths
        self.transforms = [_pil_transform(view, recipe) for view in recipe.views]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[Tensor]:
        image = Image.open(self.paths[index]).convert("RGB")
        return [transform(image) for transform in self.transforms]


def _pil_transform(view: ViewRecipe, recipe: Recipe) -> Callable[[Image.Image], Tensor]:
    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*recipe.blur_radius)))

    jitter = transforms.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    bicubic = transforms.InterpolationMode.BICUBIC
    compose: Callable[[Image.Image], Tensor] = transforms.Compose(
        [
            transforms.RandomResizedCrop(view.size, view.scale, recipe.aspect, bicubic),
            transforms.RandomHorizontalFlip(recipe.flip),
            transforms.RandomApply([jitter], view.jitter),
            transforms.RandomGrayscale(view.grayscale),
            transforms.RandomApply([transforms.Lambda(blur)], view.blur),
            transforms.RandomApply([transforms.Lambda(ImageOps.solarize)], view.solarize),
            transforms.ToTensor(),
            transforms.Normalize(recipe.mean, recipe.std),
        ]
    )
    return compose


def _ways(folder: Path, recipe: Recipe, batch_size: int, device: torch.device) -> dict[str, Callable[[], None]]:
    data = datasets.folder(folder)
    paths = [folder / data.train.name(index) for index in range(len(data.train))]

    def module(**settings: Any) -> ImageDataModule:
        return ImageDataModule(data, recipe, batch_size=batch_size, num_workers=0, **settings)

    def load(loader: DataLoader[Any]) -> Callable[[], None]:
        def run() -> None:
            for batch in loader:
                move_data_to_device(batch, device)

        return run

    def decode() -> None:
        for index in range(len(data.train)):
            data.train[index]

    def color() -> None:
        for batch in crops:
            on_device.transfer_batch_to_device(batch, device, 0)

    on_device = module(color_on="device")
    crops = on_device.train_dataloader()
    return {
        DECODE: decode,
        PIL_RECIPE: load(DataLoader(PILViews(paths, recipe), batch_size)),
        WORKER_COLOR: load(module().train_dataloader()),
        WORKER_REDUCED: load(module(reduced_decoding=True).train_dataloader()),
        DEVICE_LOADER: load(crops),
        DEVICE_REDUCED: load(module(color_on="device", reduced_decoding=True).train_dataloader()),
        DEVICE_COLOR: color,
    }
