"""What a network sees in fixed images at the end of an epoch: attention, correspondences, principal components."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esvit_pl.callbacks.figures import LogFigures
from esvit_pl.callbacks.lookup import Part, find_part
from esvit_pl.datasets import decode
from esvit_pl.visualize import (
    attention_maps,
    attention_panels,
    draw_correspondence,
    draw_pca,
    matched_views,
    pca_maps,
)

if TYPE_CHECKING:
    from esvit_pl.augment import EvaluationTransform
    from esvit_pl.visualize.looking import Picture

Folder = str | os.PathLike[str] | None


class _OfFixedImages(LogFigures):
    """Draws the same images again and again; a subclass writes `draw`.

    Args:
        images: files, or uint8 tensors (3 h w).
    """

    def __init__(
        self,
        images: Picture | Sequence[Picture],
        *,
        features: Part,
        transform: EvaluationTransform | None,
        every_n_epochs: int,
        name: str,
        folder: Folder,
    ) -> None:
        super().__init__(self.figures, every_n_epochs=every_n_epochs, name=name, folder=folder)
        given: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        if not given:
            raise ValueError(f"{type(self).__name__} needs an image or more, got none")
        self.images = [decode(str(image)) if isinstance(image, (str, Path)) else image for image in given]
        self.features, self.transform = features, transform

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        find_part(type(self).__name__, pl_module, self.features)

    def figures(self, trainer: Any, module: Any) -> Any:
        """{number of the image: figure}, one figure for one image; nothing on other processes than the first."""
        if not trainer.is_global_zero:
            return None
        return self.draw(find_part(type(self).__name__, module, self.features))

    def draw(self, network: Any) -> Any:
        raise NotImplementedError


class AttentionMaps(_OfFixedImages):
    """What places of fixed images attend to (`visualize.attention_maps`), so that a run becomes a film.

    >>> import torch
    >>> from esvit_pl.callbacks import AttentionMaps
    >>> maps = AttentionMaps(torch.zeros(3, 64, 64, dtype=torch.uint8), query=(20, 30), every_n_epochs=5)

    Args:
        images: files, PIL images or uint8 tensors (3 h w).
        query: x, y in pixels, or several; None: the class or global token.
        features: path of a `Backbone` in the module.
        block, heads, side: as in `visualize.attention_maps` and `attention_panels`.
        transform: how images are prepared; None: the network's own.
        every_n_epochs: draw after so many epochs, and after the last one.
        name, folder: of the figures, as in `LogFigures`.
    """

    def __init__(
        self,
        images: Picture | Sequence[Picture],
        query: Any = None,
        *,
        features: Part = "encoder",
        block: int = -1,
        heads: int | None = 6,
        side: int | None = None,
        transform: EvaluationTransform | None = None,
        every_n_epochs: int = 1,
        name: str = "attention",
        folder: Folder = None,
    ) -> None:
        super().__init__(
            images, features=features, transform=transform, every_n_epochs=every_n_epochs, name=name, folder=folder
        )
        several = query is not None and len(query) > 0 and not isinstance(query[0], (int, float))
        self.queries = [tuple(point) for point in query] if several else [None if query is None else tuple(query)]
        self.block, self.heads, self.side = block, heads, side

    def draw(self, network: Any) -> Any:
        how: dict[str, Any] = {"block": self.block, "side": self.side, "transform": self.transform}
        rows = [
            ("", image, attention_maps(network, image, query, **how), query)
            for image in self.images
            for query in self.queries
        ]
        return attention_panels(rows, heads=self.heads)


class Correspondences(_OfFixedImages):
    """The most similar regions of two views of fixed images, right and wrong ones (`visualize.matched_views`).

    >>> import torch
    >>> from esvit_pl.callbacks import Correspondences
    >>> lines = Correspondences(torch.zeros(3, 64, 64, dtype=torch.uint8), k=5)

    Args:
        images, features, transform, every_n_epochs, name, folder: as in `AttentionMaps`. `features` may be any network
            that gives `Features`.
        k, same_box, color, seed: as in `visualize.matched_views`. The views are the same every time.
    """

    def __init__(
        self,
        images: Picture | Sequence[Picture],
        *,
        k: int = 10,
        same_box: bool = False,
        color: bool = True,
        seed: int = 0,
        features: Part = "encoder",
        transform: EvaluationTransform | None = None,
        every_n_epochs: int = 1,
        name: str = "correspondence",
        folder: Folder = None,
    ) -> None:
        super().__init__(
            images, features=features, transform=transform, every_n_epochs=every_n_epochs, name=name, folder=folder
        )
        self.how: dict[str, Any] = {"k": k, "same_box": same_box, "color": color, "seed": seed}

    def draw(self, network: Any) -> Any:
        figures = [
            draw_correspondence(matched_views(network, image, transform=self.transform, **self.how))
            for image in self.images
        ]
        return figures[0] if len(figures) == 1 else {str(number): figure for number, figure in enumerate(figures, 1)}


class PCAMaps(_OfFixedImages):
    """Principal components of the regions of fixed images as colours (`visualize.pca_maps`).

    >>> import torch
    >>> from esvit_pl.callbacks import PCAMaps
    >>> colours = PCAMaps([torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2, foreground=True)

    Args:
        images, features, transform, every_n_epochs, name, folder: as in `Correspondences`.
        foreground, side: as in `visualize.pca_maps`.
    """

    def __init__(
        self,
        images: Picture | Sequence[Picture],
        *,
        foreground: bool = False,
        side: int | None = None,
        features: Part = "encoder",
        transform: EvaluationTransform | None = None,
        every_n_epochs: int = 1,
        name: str = "pca",
        folder: Folder = None,
    ) -> None:
        super().__init__(
            images, features=features, transform=transform, every_n_epochs=every_n_epochs, name=name, folder=folder
        )
        self.how: dict[str, Any] = {"foreground": foreground, "side": side}

    def draw(self, network: Any) -> Any:
        maps = pca_maps(network, self.images, transform=self.transform, **self.how)
        return draw_pca(self.images, {"": maps})
