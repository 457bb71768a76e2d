"""What all figures share: colours, images as arrays, a figure without a window, and how it is saved."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6B6B6B"
COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, drawn without a window whatever the user's backend is; a notebook shows it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure_class()(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@cache
def _figure_class() -> type[Figure]:
    """A figure that a notebook shows, also where matplotlib's own way to do so is not switched on."""
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            picture = BytesIO()
            self.savefig(picture, format="png", dpi=80)
            return picture.getvalue()

    return ShownFigure


def tidy(axes: Axes, label: str) -> None:
    """Name the vertical axis, draw horizontal lines behind the curves, take the frame above and at the right away."""
    axes.set_ylabel(label)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure; the folder is made, the ending of the name is the format. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def as_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file, for a page that holds it."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def array(x: Any) -> np.ndarray:
    """A tensor on any device, or anything that numpy reads, in float64."""
    return np.asarray(x.detach().cpu().float() if hasattr(x, "detach") else x, dtype=np.float64)


def pixels(x: Any) -> np.ndarray:
    """(c h w) of any range -> (h w 3) or (h w) in 0-1."""
    is_bytes = str(getattr(x, "dtype", "")).endswith("uint8")
    values = array(x).transpose(1, 2, 0)
    if is_bytes:
        values = values / 255
    low, high = values.min(), values.max()
    if low < 0 or high > 1:  # normalised: show it over its own range
        values = (values - low) / max(high - low, 1e-12)
    return values if values.shape[2] == 3 else values[:, :, 0]
