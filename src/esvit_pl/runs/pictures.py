"""The pictures of a run, from what lies in its folder and from its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from esvit_pl.augment import Recipe, draw, evaluation_view, make_views
from esvit_pl.backbones import Backbone
from esvit_pl.datasets import ImageDataset, Splits, readable
from esvit_pl.evaluation.label_free import Neighbours, evenly
from esvit_pl.evaluation.names import PRETRAINED, PRETRAINED_SUBSET, figure_title, is_training_loss
from esvit_pl.metrics_file import read_metrics
from esvit_pl.printing import say
from esvit_pl.visualize import (
    attention_maps,
    attention_panels,
    comparison,
    crops,
    draw_correspondence,
    draw_pca,
    learning_curve,
    matched_views,
    neighbours,
    pca_maps,
    save,
)


def draw_crops(folder: Path, images: ImageDataset, recipe: Recipe, *, seed: int, index: int = 0) -> Path:
    """``crops.png``: an image with its crop boxes, and its views as colour and blur leave them."""
    image = readable(lambda shown: images[shown][0], len(images), index, seed, 0)
    parameters = draw(recipe.views, recipe, image.shape[-2:], seed=seed, epoch=0, index=index)
    views = make_views(recipe, image, parameters, normalized=False)
    figure = crops(image, parameters.boxes, views, num_global=recipe.num_global, flipped=parameters.flipped.tolist())
    return save(figure, folder / "crops.png")


def draw_results(folder: Path, metrics: Path, table: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """``learning_curve.png`` of a `MetricsCSV` file, if there is one, ``comparison.png`` of a table with baselines.

    Args:
        table: as in results.json; of its entry ``evaluation`` come intervals and the number of images.
    """
    drawn: list[Path] = []
    knn: Mapping[str, Any] = table.get("knn", {})
    baselines = {row: value for row, value in knn.items() if row not in (PRETRAINED, PRETRAINED_SUBSET)}
    rows = read_metrics(metrics) if metrics.is_file() else []
    if any(is_training_loss(name) for row in rows for name in row):
        images = table.get("evaluation", {}).get("images", {}).get("query")
        drawn.append(save(learning_curve(rows, baselines, images=images), folder / "learning_curve.png"))
    if baselines:
        drawn.append(draw_comparison(folder, table))
    return drawn


def draw_comparison(folder: Path, table: Mapping[str, Mapping[str, Any]]) -> Path:
    """``comparison.png``: the rows of a table of results side by side, with the intervals of ``evaluation``."""
    return save(comparison(table), folder / "comparison.png")


def draw_neighbours(folder: Path, found: Mapping[str, Sequence[Neighbours]], splits: Splits, recipe: Recipe) -> Path:
    """``neighbours.png``: images of the query and their nearest ones of the bank, as evaluation sees them.

    Args:
        found: {a row of results, or any title: its neighbours of the same queries}; rows below one another.
    """

    def shown(images: ImageDataset, index: int) -> Tensor:
        # As in an evaluation, also where the data set skips an image.
        return readable(lambda i: evaluation_view(recipe, images[i][0], normalized=False), len(images), index)

    rows = [(name, row) for each in zip(*found.values(), strict=True) for name, row in zip(found, each, strict=True)]
    queries = [shown(splits.query, row.query) for _, row in rows]
    nearest = [[shown(splits.bank, index) for index in row.bank] for _, row in rows]
    titles = [figure_title(name) for name, _ in rows] if len(found) > 1 else None
    figure = neighbours(queries, nearest, [row.cosines for _, row in rows], titles=titles)
    return save(figure, folder / "neighbours.png")


def draw_learned(folder: Path, backbone: Backbone, images: ImageDataset, *, seed: int = 0) -> list[Path]:
    """``attention.png``, ``correspondence.png``, ``pca.png``: see `learned`; whatever goes wrong becomes one line."""
    try:
        return [save(figure, folder / f"{kind}.png") for kind, figure in learned(backbone, images, seed=seed).items()]
    except Exception as error:  # the training and its results are worth more than a picture
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        say(f"note: no pictures of what the backbone has learned ({what})")
        return []


def learned(backbone: Backbone, images: ImageDataset, *, number: int = 4, seed: int = 0) -> dict[str, Any]:
    """Figures of what a backbone makes of some images, evenly chosen.

    ``attention`` of the last block from the middle of each image, if the backbone has it; ``correspondence`` of two
    views of the first; ``pca`` of all.
    """
    chosen = evenly(len(images), number)
    shown = [readable(lambda index: images[index][0], len(images), index) for index in chosen]
    middles = [(image.shape[-1] / 2, image.shape[-2] / 2) for image in shown]
    figures = {}
    try:
        maps = [attention_maps(backbone, image, middle) for image, middle in zip(shown, middles, strict=True)]
    except NotImplementedError:
        pass
    else:
        rows = zip(shown, maps, middles, strict=True)
        figures["attention"] = attention_panels([("", *row) for row in rows])
    figures["correspondence"] = draw_correspondence(matched_views(backbone, shown[0], seed=seed))
    figures["pca"] = draw_pca(shown, {"": pca_maps(backbone, shown)})
    return figures
