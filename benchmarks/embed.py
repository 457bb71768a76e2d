"""Images a second and memory of ``esvit-embed``: ``python -m benchmarks.embed``.

Embeds 2,000 and 20,000 made JPEGs of 64 px with a Swin of random weights for 32 px, each in a process of its own that
loads its images itself. Both spend the same on the start, so the difference between them is that of the images.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from esvit_pl.backbones import build
from esvit_pl.checkpoints.safetensors_file import save
from esvit_pl.configs.assemble import plain
from esvit_pl.configs.compose import compose
from esvit_pl.profiling.measure import machine
from esvit_pl.profiling.report import MIB, as_words

FEW, MANY = 2_000, 20_000


def main() -> None:
    spec = plain(compose("pretrain", "backbone=swin_micro_32px").backbone)
    del spec["_target_"]
    with tempfile.TemporaryDirectory(prefix="embed-") as folder:
        save(build(**spec), Path(folder, "swin.safetensors"))
        found = {images: embedded(Path(folder), images) for images in (FEW, MANY)}
    seconds, peaks = zip(*found.values(), strict=True)
    print(f"{as_words(machine())}, JPEGs of 64 px, Swin of {spec['embed_dim']} channels for 32 px")
    print(f"{(MANY - FEW) / (seconds[1] - seconds[0]):.0f} images/s")
    print(f"memory at most: {peaks[0] / MIB:.0f} MiB of {FEW:,} images, {peaks[1] / MIB:.0f} MiB of {MANY:,}")


def embedded(folder: Path, images: int) -> tuple[float, int]:
    """Seconds and peak memory in bytes of one process."""
    root = folder / str(images)
    root.mkdir()
    generator = np.random.default_rng(0)
    for number in range(images):
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(root / f"{number}.jpg")
    words = [f"ckpt_path={folder}/swin.safetensors", "dataset=folder", f"dataset.root={root}", "augment=embedded"]
    words += [f"out={folder}/{images}.npz", "trainer=cpu", "datamodule.num_workers=0"]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "esvit_pl.commands.embed", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"esvit-embed of {images} images ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, used.ru_maxrss * 1024


if __name__ == "__main__":
    main()
