"""VOC2012, ADE20K and SPair-71k in the layouts in which they are unpacked, with pictures of a few plain colours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)], dtype=np.uint8)
VOID = 255


def blocks(seed: int, classes: int = 4, side: int = 4) -> np.ndarray:
    """uint8 (side side) class numbers from 0 on, drawn at random."""
    return np.random.default_rng(seed).integers(0, classes, (side, side), dtype=np.uint8)


def pictured(mask: np.ndarray, cell: int) -> Image.Image:
    """Every class in its colour, `cell` pixels for each number; void is grey."""
    colours = np.where((mask == VOID)[..., None], np.uint8(128), COLOURS[np.minimum(mask, 4)])
    return Image.fromarray(colours.repeat(cell, 0).repeat(cell, 1))


def write_voc(root: Path, masks: dict[str, list[np.ndarray]], cell: int = 8) -> Path:
    """``root/VOCdevkit/VOC2012``; JPEGs of high quality, and masks with a palette, as VOC has them."""
    home = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for split, parts in masks.items():
        names = [f"2007_{split}{number:02d}" for number in range(len(parts))]
        (home / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name, mask in zip(names, parts, strict=True):
            pictured(mask, cell).save(home / "JPEGImages" / f"{name}.jpg", quality=100, subsampling=0)
            image = Image.fromarray(mask.repeat(cell, 0).repeat(cell, 1), mode="P")
            image.putpalette([*range(256)] * 3)
            image.save(home / "SegmentationClass" / f"{name}.png")
    return root


def write_ade(root: Path, masks: dict[str, list[np.ndarray]], cell: int = 8) -> Path:
    """``root/ADEChallengeData2016``; in its files 0 is void and 1 the first class."""
    home = root / "ADEChallengeData2016"
    for split, parts in masks.items():
        for folder in ("images", "annotations"):
            (home / folder / split).mkdir(parents=True, exist_ok=True)
        for number, mask in enumerate(parts, start=1):
            name = f"ADE_{split[:5]}_{number:08d}"
            pictured(mask, cell).save(home / "images" / split / f"{name}.jpg", quality=100, subsampling=0)
            numbers = (mask + np.uint8(1)).repeat(cell, 0).repeat(cell, 1)  # 255 becomes 0
            Image.fromarray(numbers).save(home / "annotations" / split / f"{name}.png")
    rows = [f"{number}\t0.1\t1\t1\t1\tthing{number}, object{number}" for number in range(1, 151)]
    (home / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]) + "\n")
    return root


def write_spair(root: Path, pairs: list[dict], split: str = "test") -> Path:
    """``root/SPair-71k``. A pair is a dict with ``category``, and for ``src`` and ``trg`` an image with its name,
    keypoints and box: ``(name, PIL image, [(x, y)], (left, top, right, bottom))``."""
    home = root / "SPair-71k"
    (home / "PairAnnotation" / split).mkdir(parents=True, exist_ok=True)
    (home / "Layout" / "large").mkdir(parents=True, exist_ok=True)
    names = []
    for number, pair in enumerate(pairs):
        folder = home / "JPEGImages" / pair["category"]
        folder.mkdir(parents=True, exist_ok=True)
        names.append(f"{number:06d}-{pair['src'][0]}-{pair['trg'][0]}:{pair['category']}")
        about = {"pair_id": number, "category": pair["category"], "filename": names[-1], "mirror": 0}
        for side in ("src", "trg"):
            name, image, points, box = pair[side]
            image.save(folder / f"{name}.jpg", quality=100, subsampling=0)
            about |= {f"{side}_imname": f"{name}.jpg", f"{side}_imsize": [*image.size, 3], f"{side}_bndbox": box}
            about |= {f"{side}_kps": points, "kps_ids": [str(i) for i in range(len(points))]}
        (home / "PairAnnotation" / split / f"{names[-1]}.json").write_text(json.dumps(about))
    (home / "Layout" / "large" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root
