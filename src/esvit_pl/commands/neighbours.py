"""``esvit-neighbours``: the embedded images, or regions of them, that are nearest to an image."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from esvit_pl.commands.evaluation import origin
from esvit_pl.configs import evaluated_images, weights
from esvit_pl.configs.command_line import command, requires
from esvit_pl.configs.several import listed
from esvit_pl.printing import say
from esvit_pl.safe_text import for_csv, for_terminal

if TYPE_CHECKING:
    from torch import Tensor

    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.datasets import ImageDataset, Splits
    from esvit_pl.evaluation.stored import Stored
    from esvit_pl.visualize.regions import NearRegion

EXAMPLES = [
    "esvit-neighbours ckpt_path=RUN embedded=features.npz query=photo.jpg",
    "esvit-neighbours ckpt_path=RUN embedded=photos.npz dataset=folder dataset.root=photos/ query=new/ table=near.csv",
    "esvit-neighbours ckpt_path=RUN embedded=features.npz query=photo.jpg regions=true place=[120,80]",
]


class Found(NamedTuple):
    """The neighbours of one query, nearest first."""

    query: str
    rows: list[int]
    """The neighbours' rows in the file of features."""
    cosines: list[float]
    regions: list[NearRegion]
    """The region of each neighbour that is nearest; empty if whole images were compared."""


@command(
    "neighbours",
    summary="the embedded images, or regions of them, that are nearest to an image.",
    examples=EXAMPLES,
    needs=requires("esvit-neighbours", "ckpt_path", "embedded", "query"),
    refuses=partial(evaluated_images.refuse_experiment, "esvit-neighbours"),
)
def main(cfg: DictConfig) -> None:
    from esvit_pl.augment import EvaluationTransform
    from esvit_pl.configs import assemble
    from esvit_pl.evaluation.stored import load_features

    files = images_of(cfg.query)
    if cfg.k < 1 or cfg.most < 1:
        raise ValueError(f"k and most must be 1 or more, got k={cfg.k}, most={cfg.most}")
    if cfg.place is not None and not cfg.regions:
        raise ValueError(f"place={cfg.place} is a place whose region is looked for; set regions=true")
    stored = load_features(cfg.embedded, mapped=True)
    kind = "regions" if cfg.regions else "pooled"
    if kind not in stored.features:
        raise ValueError(f"{cfg.embedded} holds {', '.join(stored.features)}; make it with esvit-embed {kind}=true")
    source = weights.evaluated(cfg)
    backbone = weights.frozen_backbone(cfg, source)
    if (line := evaluated_images.take_dataset(cfg, source, "esvit-neighbours")) is not None:
        weights.say(line)
    recipe, _ = evaluated_images.preparation(cfg, source)
    evaluated_images.keep(cfg, recipe)
    splits, _ = assemble.images(cfg)
    images = embedded_images(cfg, stored, splits, partial(origin, cfg, backbone, recipe))
    pixels = getattr(backbone.transform, "pixels", None)
    backbone.transform = EvaluationTransform(recipe, pixels) if pixels else EvaluationTransform(recipe)
    found = near_regions(cfg, backbone, files, stored) if cfg.regions else near_images(backbone, files, stored, cfg.k)
    say(text(found[: cfg.most], stored))
    if len(found) > cfg.most:
        say(f"\nthe first {cfg.most} of {len(found)} queries; most= shows more, table= writes all")
    if cfg.table is not None:
        say(f"\n{write_table(Path(cfg.table), found, stored)}")
    say(f"\n{draw(cfg, found[: cfg.most], stored, images, backbone, recipe)}")


def images_of(query: Any) -> list[str]:
    """The files of ``query=``, those of folders among them."""
    from esvit_pl.datasets.listing import list_images

    files: list[str] = []
    for each in listed(query):
        path = Path(each)
        if not path.exists():
            raise ValueError(f"query={each}: there is no such image or folder")
        folders = list_images(path).images if path.is_dir() else {"": [path.name]}
        top = path if path.is_dir() else path.parent
        files += sorted(str(top / folder / name) for folder, names in folders.items() for name in names)
    if not files:
        raise ValueError(f"query={query} holds no image")
    return files


def embedded_images(cfg: DictConfig, stored: Stored, splits: Splits, origin_of: Any) -> ImageDataset:
    """The part of the data whose features the file holds.

    Raises:
        ValueError: the features are of other weights, prepared otherwise, or of other images; it says which.
    """
    from esvit_pl.evaluation.stored import differing

    parts: list[ImageDataset]
    parts = [part for name in ("train", "val", "bank", "query") if (part := getattr(splits, name)) is not None]
    abouts = [origin_of(part) for part in parts]
    names = ("weights", "preparation", "precision", "data")
    theirs = {name: stored.about.get(name) for name in names}
    for part, about in zip(parts, abouts, strict=True):
        if differing(theirs, about) is None:
            return part
    name, old, new = next(each for about in abouts if (each := differing(theirs, about)))
    if name == "data":
        raise ValueError(
            f"{cfg.embedded} holds features of other images than dataset= names; give the dataset= of esvit-embed"
        )
    raise ValueError(
        f"{cfg.embedded} was made with {name} {old}, and now {name} {new} came; give the ckpt_path= and settings of "
        "esvit-embed, or embed the images anew"
    )


def near_images(backbone: Backbone, files: Sequence[str], stored: Stored, k: int) -> list[Found]:
    """The k nearest images of each query. The file's features are read from the disk block by block."""
    import torch

    from esvit_pl.metrics.knn import nearest

    with torch.no_grad():
        asked = torch.cat([backbone(prepared(backbone, file)).pooled for file in files])
    bank = torch.from_numpy(stored.features["pooled"])
    cosines, places = nearest(bank, asked, k=min(k, len(bank)))
    pairs = zip(files, places.tolist(), cosines.tolist(), strict=True)
    return [Found(file, rows, values, []) for file, rows, values in pairs]


def near_regions(cfg: DictConfig, backbone: Backbone, files: Sequence[str], stored: Stored) -> list[Found]:
    """The region of each image that is most like a place of the query, and of these the k nearest."""
    import torch

    from esvit_pl.commands.drawings import pixels
    from esvit_pl.visualize.regions import like, region_at

    maps = torch.from_numpy(stored.features["regions"])  # (n h w d)
    found = []
    for file in files:
        asked = region_at(backbone, file, place_in(cfg, pixels(file, backbone)))
        near = like(asked, ((part.flatten(1, 2), (part.shape[1], part.shape[2])) for part in maps.split(256)), k=cfg.k)
        found.append(Found(file, [each.image for each in near], [each.cosine for each in near], near))
    return found


def place_in(cfg: DictConfig, image: Tensor) -> tuple[float, float]:
    """``place=``, or the middle of an image (c h w)."""
    from esvit_pl.commands.drawings import points

    return next(iter(points(cfg.place)), (image.shape[-1] / 2, image.shape[-2] / 2))


def prepared(backbone: Backbone, file: str) -> Tensor:
    """(1 c h w), as esvit-embed prepares an image."""
    from esvit_pl.datasets import decode

    transform: Any = backbone.transform
    image: Tensor = transform(decode(file, transform.pixels))[None]
    return image


def text(found: Sequence[Found], stored: Stored) -> str:
    lines = []
    for each in found:
        lines.append(for_terminal(each.query))
        for rank, (row, cosine) in enumerate(zip(each.rows, each.cosines, strict=True), start=1):
            image = for_terminal(f"{stored.names[row]}  {class_of(stored, row)}".rstrip())
            lines.append(f"  {rank:>3}  {cosine:.3f}  {image}")
    return "\n".join(lines)


def class_of(stored: Stored, row: int) -> str:
    """The class of an embedded image; empty without labels."""
    if stored.labels is None or stored.labels.ndim > 1:
        return ""
    label, classes = int(stored.labels[row]), stored.about.get("classes")
    return str(classes[label]) if classes else str(label)


def write_table(file: Path, found: Sequence[Found], stored: Stored) -> Path:
    """A line for each neighbour: query, rank, name, class, cosine, and of a region its row and column in its map."""
    from esvit_pl.whole import replacing

    with replacing(file) as draft, draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.writer(opened)
        writer.writerow(["query", "rank", "name", "class", "cosine", "region_row", "region_column"])
        for each in found:
            for rank, (row, cosine) in enumerate(zip(each.rows, each.cosines, strict=True), start=1):
                cell = each.regions[rank - 1].cell if each.regions else ("", "")
                names = [for_csv(name) for name in (each.query, stored.names[row], class_of(stored, row))]
                writer.writerow([names[0], rank, *names[1:], repr(cosine), *cell])
    return file


def draw(
    cfg: DictConfig,
    found: Sequence[Found],
    stored: Stored,
    images: ImageDataset,
    backbone: Backbone,
    recipe: Recipe,
) -> Path:
    """The picture: queries to the left, their neighbours beside them. A line names images that cannot be read now."""
    import torch

    from esvit_pl.augment import evaluation_view
    from esvit_pl.commands.drawings import pixels
    from esvit_pl.visualize import draw_near_regions, neighbours, save

    index = {images.name(place): place for place in range(len(images))}
    lost: list[str] = []

    def shown(row: int) -> Tensor:
        try:
            return evaluation_view(recipe, images[index[stored.names[row]]][0], normalized=False)
        except (OSError, ValueError):
            lost.append(stored.names[row])
            return torch.full((3, 32, 32), 128, dtype=torch.uint8)

    queries = [pixels(each.query, backbone) for each in found]
    nearest = [[shown(row) for row in each.rows] for each in found]
    if cfg.regions:
        rows = [
            (image, place_in(cfg, image), list(zip(near, each.regions, strict=True)))
            for image, near, each in zip(queries, nearest, found, strict=True)
        ]
        figure = draw_near_regions(rows)
    else:
        names = [[class_of(stored, row) for row in each.rows] for each in found]
        figure = neighbours(queries, nearest, [each.cosines for each in found], names=names)
    if lost:
        say(f"\nthese cannot be read now, and are grey in the picture: {', '.join(map(for_terminal, lost))}")
    return save(figure, Path(cfg.out))


if __name__ == "__main__":
    main()
