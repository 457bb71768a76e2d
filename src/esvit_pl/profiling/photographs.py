"""JPEGs to measure with, made on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image


@contextmanager
def photographs_in_a_folder(number: int, size: tuple[int, int]) -> Iterator[Path]:
    """A folder of so many JPEGs of (height, width), as long as it is needed."""
    with TemporaryDirectory() as folder:
        for image in range(number):
            (Path(folder) / f"{image}.jpg").write_bytes(photograph(image, size))
        yield Path(folder)


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
