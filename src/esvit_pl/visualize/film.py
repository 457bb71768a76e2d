"""A run as a film: the pictures that a callback has drawn, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def film(frames: Sequence[Path], path: Path, *, seconds: float = 0.4) -> Path:
    """Write a GIF that shows each frame for so many seconds, the last one longer, and begins again. Returns its path.

    Raises:
        ValueError: there are no frames; they are not pictures of one size.
    """
    if not frames:
        raise ValueError("a film needs a frame or more, got none")
    if seconds <= 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    pictures = []
    for frame in frames:
        with Image.open(frame, formats=["PNG"]) as file:
            pictures.append(file.convert("RGB"))
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"the frames of a film need one size, got {', '.join(f'{w} x {h}' for w, h in sorted(sizes))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [round(1000 * seconds)] * (len(pictures) - 1) + [round(4000 * seconds)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return path
