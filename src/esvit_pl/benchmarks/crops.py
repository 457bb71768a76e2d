"""``python -m esvit_pl.benchmarks.crops``: images a second that one core reads, crops and colours, in four ways."""

from __future__ import annotations

import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from esvit_pl import datasets
from esvit_pl.augment import Recipe, ViewRecipe
from esvit_pl.datamodule import ImageDataModule, OneThread

DECODE = "decode alone"
PIL_RECIPE = "PIL recipe"
WORKER_CROPS = "worker_crops"
DEVICE_LOADER = "device_crops, loader and transfer"
DEVICE_CROPS = "device_crops, with colour"


def crop_rates(
    recipe: Recipe | None = None,
    *,
    images: int = 64,
    image_size: tuple[int, int] = (375, 500),
    batch_size: int = 16,
    repeats: int = 5,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Images a second of each way, one number for each repeat; the ways take turns, on one thread, without workers.

    "PIL recipe" is the same recipe as transforms of torchvision on PIL images, one view after the other.

    Args:
        recipe: `Recipe()`, the released one, if None.
        images: JPEGs in one pass, which are made here (`photograph`).
        image_size: (height, width).
        batch_size: images.
        repeats: passes over all images, after one to warm up.
        device: where `device_crops` colours; crops are moved there.
    """
    recipe = recipe or Recipe()
    with TemporaryDirectory() as folder, OneThread():
        paths = [Path(folder) / f"{number}.jpg" for number in range(images)]
        for number, path in enumerate(paths):
            path.write_bytes(photograph(number, image_size))
        ways = _ways(paths, recipe, batch_size, torch.device(device))
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats + 1):
            for name, run in ways.items():
                start = perf_counter()
                run()
                rates[name].append(images / (perf_counter() - start))
    return {name: values[1:] for name, values in rates.items()}


def paired_ratio(rates: dict[str, list[float]], way: str, other: str = PIL_RECIPE) -> float:
    """How many times as fast `way` is as `other`: the median over the repeats, each compared within itself."""
    return median(one / two for one, two in zip(rates[way], rates[other], strict=True))


def photograph(seed: int, size: tuple[int, int]) -> bytes:
    """A JPEG of quality 90 and (height, width): coloured noise in all coarsenesses, as strong as it is coarse."""
    generator = np.random.default_rng(seed)
    height, width = size
    pixels = np.full((height, width, 3), 128.0)
    cell = max(size) // 2
    while cell >= 1:
        coarse = generator.normal(0, 1, (height // cell + 2, width // cell + 2, 3)) * 6 * cell**0.4
        layers = [Image.fromarray(coarse[..., c].astype(np.float32)).resize((width, height)) for c in range(3)]
        pixels += np.stack([np.asarray(layer) for layer in layers], axis=-1)
        cell //= 2
    stream = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


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
    return transforms.Compose(
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


def _ways(paths: list[Path], recipe: Recipe, batch_size: int, device: torch.device) -> dict[str, Callable[[], None]]:
    data = datasets.folder(paths[0].parent)
    worker, apart = (
        ImageDataModule(data, recipe, batch_size=batch_size, num_workers=0, color_on=place)
        for place in ("worker", "device")
    )
    plain, crops = worker.train_dataloader(), apart.train_dataloader()
    pil = DataLoader(PILViews(paths, recipe), batch_size)

    def decode() -> None:
        for index in range(len(data.train)):
            data.train[index]

    def load(loader: DataLoader) -> None:
        for batch in loader:
            move_data_to_device(batch, device)
        _wait(device)

    def color() -> None:
        for batch in crops:
            apart.transfer_batch_to_device(batch, device, 0)
        _wait(device)

    return {
        DECODE: decode,
        PIL_RECIPE: lambda: load(pil),
        WORKER_CROPS: lambda: load(plain),
        DEVICE_LOADER: lambda: load(crops),
        DEVICE_CROPS: color,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    where = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if where == "cuda" else "CPU"
    print(f"torch {torch.__version__}, one thread; JPEGs of 500 x 375, views 2 x 224 + 8 x 96 px, batch 16")
    print(f"device_crops colours on: {name}")
    measured = crop_rates(device=where)
    for way, values in measured.items():
        ratio = paired_ratio(measured, way)
        print(f"{way:<36}{median(values):8.1f} images/s{ratio:8.2f} x the PIL recipe")
