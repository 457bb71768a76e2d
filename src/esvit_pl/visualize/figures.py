"""Figures of a run. The only file that knows matplotlib; no window is ever opened and no global state is used."""

# v views | h, w rows and columns in pixels

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6B6B6B"
COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)
LOSSES = {"train/view_loss": ("view loss", BLUE), "train/region_loss": ("region loss", ORANGE)}
ROWS = {
    "chance": "chance",
    "raw_pixels": "raw pixels",
    "histogram": "grey histogram",
    "untrained": "untrained",
    "initial": "before",
    "pretrained": "pretrained",
}
"""Rows of results.json in the order in which they are shown, and what they are called."""
PARAMETERS_OF_A_POINT = 1.3e6
"""A dot of `accuracy_against_throughput` has a square point for so many."""
AROUND = tuple(map(np.array, [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]))
"""Where a dot's name may stand, (right, up), best first."""


class Model(NamedTuple):
    """A dot of `accuracy_against_throughput`."""

    method: str
    """What its colour stands for."""
    name: str
    """Written beside it."""
    images_per_second: float
    accuracy: float
    """Fraction in 0-1."""
    parameters: int
    """Their number is the dot's area."""
    start: float | None = None
    """Accuracy before something was added, where an arrow begins."""


def learning_curve(
    rows: Sequence[Mapping[str, float]],
    baselines: Mapping[str, float] | None = None,
    *,
    losses: Sequence[str] = tuple(LOSSES),
    accuracy: str | None = "knn/top1",
) -> Figure:
    """Losses above, an accuracy below, against epochs (or steps, if the rows hold no epoch).

    Args:
        rows: one dict a step with "step", "epoch" and any of the metrics, as `read_metrics` of esvit_pl.loggers gives
            them.
        baselines: {name: accuracy in 0-1}, dashed lines in the lower picture; names as in results.json or free.
        losses: names of metrics for the upper picture; without any there is only the lower one.
        accuracy: name of a fraction in 0-1 for the lower picture; None leaves it out.

    Raises:
        ValueError: no row holds any of these metrics.
    """
    names = [*losses, *([accuracy] if accuracy else [])]
    curves = {name: _curve(rows, name) for name in names}
    if not any(len(steps) for steps, _ in curves.values()):
        raise ValueError(f"learning_curve needs rows with one of {', '.join(names)}; found none in {len(rows)} rows")
    pictures = bool(losses) + bool(accuracy)
    figure = _figure(6.4, 3.0 * pictures)
    axes = list(np.ravel(figure.subplots(pictures, 1, sharex=True, squeeze=False)))
    per_epoch = _steps_per_epoch(rows)
    if losses:
        for name, other in zip(losses, itertools.cycle(COLOURS)):
            label, colour = LOSSES.get(name, (name, other))
            steps, values = curves[name]
            if len(steps):
                _line(axes[0], steps / per_epoch, values, colour, label)
        _finish(axes[0], "loss")
        if axes[0].lines:
            axes[0].legend(frameon=False)
    if accuracy:
        steps, values = curves[accuracy]
        if len(steps):
            mark = "o" if len(steps) <= 30 else None
            axes[-1].plot(steps / per_epoch, 100 * values, color=GREEN, marker=mark, markersize=4, label="pretraining")
        _baselines(axes[-1], {ROWS.get(name, name): 100 * value for name, value in (baselines or {}).items()})
        _finish(axes[-1], "k-NN top-1 accuracy (%)" if accuracy == "knn/top1" else f"{accuracy} (%)")
        highest = 100 * max([*values, *(baselines or {}).values()], default=1.0)
        axes[-1].set_ylim(0, 1.1 * highest if highest > 0 else 1)
    axes[-1].set_xlabel("epoch" if any("epoch" in row for row in rows) else "step")
    return figure


def crops(
    image: Any, boxes: Any, views: Sequence[Any], *, num_global: int = 2, flipped: Sequence[bool] | None = None
) -> Figure:
    """An image with the boxes of its crops, and the crops as the network sees them.

    Args:
        image: (c h w) in 0-1 or uint8, or anything of that shape, which is stretched to its own range.
        boxes: (v 4), x, y, w, h of every crop in the image, 0-1.
        views: v of (c h w), global ones first, of any size; normalised ones are stretched to their own range.
        num_global: how many are global.
        flipped: v, which views were mirrored; said in their titles.
    """
    from matplotlib.patches import Rectangle

    boxes = _array(boxes)
    if boxes.shape != (len(views), 4):
        raise ValueError(f"crops needs boxes of shape ({len(views)}, 4), one for each view, got {boxes.shape}")
    columns = 5 if len(views) > 4 else max(len(views), 1)
    lines = -(-len(views) // columns)
    figure = _figure(3.2 + 1.5 * columns, max(3.4, 1.75 * lines))
    whole, right = np.ravel(figure.subfigures(1, 2, squeeze=False, width_ratios=[3.2, 1.5 * columns]))
    picture = _picture(image)
    height, width = picture.shape[:2]
    axes = whole.subplots()
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_title("image", fontsize=9)
    axes.axis("off")
    grid = list(right.subplots(lines, columns, squeeze=False).flat)
    for cell in grid:
        cell.axis("off")
    for index, (view, box) in enumerate(zip(views, boxes, strict=True)):
        is_global = index < num_global
        colour = BLUE if is_global else ORANGE
        x, y, w, h = box * [width, height, width, height]
        corner = (x - 0.5, y - 0.5)  # imshow puts the first pixel's centre at 0
        axes.add_patch(Rectangle(corner, w, h, fill=False, edgecolor=colour, linewidth=2 if is_global else 1.2))
        name = _crop_name(index, num_global)
        tag = {"color": "white", "fontsize": 7, "bbox": {"facecolor": colour, "edgecolor": "none", "pad": 1}}
        axes.annotate(name[0] + name.split()[1], corner, (2, -2), textcoords="offset points", va="top", **tag)
        cell = grid[index]
        cell.imshow(_picture(view), cmap="gray", vmin=0, vmax=1)
        cell.set_title(name + (", mirrored" if flipped is not None and bool(flipped[index]) else ""), fontsize=8)
        cell.axis("on")
        cell.set(xticks=[], yticks=[])
        for spine in cell.spines.values():
            spine.set(color=colour, linewidth=2)
    return figure


def comparison(results: Mapping[str, Any], *, probes: Sequence[str] = ("knn", "linear")) -> Figure:
    """Accuracies of the pretrained network and its baselines side by side, one panel for each probe.

    Args:
        results: as in results.json, ``{"knn": {"chance": 0.05, ..., "pretrained": 0.63}, "linear": {...}}``; probes
            and rows that are missing or null are left out.
        probes: which ones, in order.
    """
    titles = {"knn": "k-NN", "linear": "linear probe"}
    tables = {probe: _rows(results.get(probe)) for probe in probes}
    tables = {probe: table for probe, table in tables.items() if table}
    if not tables:
        raise ValueError(f"comparison needs results of {' or '.join(probes)}, got {', '.join(results) or 'nothing'}")
    longest = max(len(table) for table in tables.values())
    figure = _figure(1 + 3.2 * len(tables), 1 + 0.45 * longest)
    panels = figure.subplots(1, len(tables), squeeze=False, sharex=True)[0]
    for axes, (probe, table) in zip(panels, tables.items(), strict=True):
        names = [ROWS.get(name, name) for name in table]
        values = [100 * value for value in table.values()]
        colours = [BLUE if name == "pretrained" else GREY for name in table]
        bars = axes.barh(names, values, color=colours, height=0.65)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
        axes.invert_yaxis()
        axes.set_title(titles.get(probe, probe), fontsize=10)
        axes.set_xlabel("top-1 accuracy (%)")
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def sweep(groups: Mapping[str, Sequence[float]], metric: str, *, smaller_is_better: bool = False) -> Figure:
    """One dot a run, one line for each group of runs, the best mean on top; a tick marks the mean of several runs.

    Args:
        groups: {settings in words: the metric of each run}, the runs of a group differing in nothing but the seed. A
            group without a value is named at the bottom.
        metric: its name; accuracies (``knn/top1``) are shown in %.
        smaller_is_better: for losses.
    """
    if not any(len(values) for values in groups.values()):
        raise ValueError(f"sweep needs a value of {metric}, got {len(groups)} groups without any")
    factor = 100 if metric.rpartition("/")[2].startswith("top") else 1
    order = sorted((name for name in groups if len(groups[name])), key=lambda name: float(np.mean(groups[name])))
    names = [*(order if smaller_is_better else reversed(order)), *(name for name in groups if not len(groups[name]))]
    figure = _figure(4.2 + 0.075 * min(max(map(len, names)), 70), 1.1 + 0.3 * len(names))
    axes = figure.subplots()
    for height, name in enumerate(names):
        values = factor * np.asarray(groups[name], dtype=float)
        axes.plot(values, np.full(len(values), height), "o", color=BLUE, alpha=0.6, markersize=6, markeredgewidth=0)
        if len(values) > 1:
            axes.plot([values.mean()], [height], "|", color=RED, markersize=15, markeredgewidth=2)
        elif not len(values):
            axes.annotate("no value", (0.01, height), xycoords=("axes fraction", "data"), va="center", color=GREY)
    axes.set_yticks(range(len(names)), [_cut(name, 70) for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first one on top
    axes.set_xlabel(f"{metric} (%)" if factor == 100 else metric)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def accuracy_against_throughput(
    published: Sequence[Model], measured: Sequence[Model] = (), *, where: str = "this machine"
) -> Figure:
    """Linear accuracy on ImageNet-1k against images a second, one dot a model; arrows show what L_R adds to L_V.

    Args:
        published: drawn above, on the paper's V100.
        measured: drawn below, where they were measured; none leaves the lower picture out.
        where: that machine, in words.
    """
    panels = {"published: one V100": published, f"measured: {where}": measured}
    panels = {title: models for title, models in panels.items() if models}
    if not panels:
        raise ValueError("accuracy_against_throughput needs a model or more, got none")
    methods = list(dict.fromkeys(model.method for models in panels.values() for model in models))
    colours = dict(zip(methods, itertools.cycle(COLOURS)))
    figure = _figure(6.4, 0.9 + 3.9 * len(panels))
    grid = np.ravel(figure.subplots(len(panels), 1, squeeze=False, sharey=True))
    for axes, (title, models) in zip(grid, panels.items(), strict=True):
        _models(axes, models, colours)
        axes.set_title(title, fontsize=10)
        _finish(axes, "linear accuracy (%)")
        axes.set_xlabel("images/s")
    arrows = any(model.start is not None for models in panels.values() for model in models)
    _model_legend(figure, colours, arrows=arrows)
    figure.draw_without_rendering()  # so that the layout is known to what finds room for the names
    for axes, models in zip(grid, panels.values(), strict=True):
        _model_names(axes, models)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure; the folder is made, the ending of the name is the format. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _figure(width: float, height: float) -> Figure:
    """A figure of so many inches, drawn without a window whatever the user's backend is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curve(rows: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["step"] + 1, row[name]) for row in rows if name in row]  # step 0 is over when its loss is known
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, values


def _steps_per_epoch(rows: Sequence[Mapping[str, float]]) -> float:
    """Steps that are done over epochs that are begun: exact in the last row of an epoch, smaller everywhere else."""
    return max((float(row["step"] + 1) / (row["epoch"] + 1) for row in rows if "epoch" in row), default=1.0)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """The curve; where it has many points, its running mean over the noise of the steps."""
    window = len(x) // 40
    if window < 2:
        axes.plot(x, y, color=colour, linewidth=1.6, label=label)
        return
    axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.25)
    mean = np.convolve(y, np.ones(window) / window, mode="valid")
    axes.plot(x[window - 1 :], mean, color=colour, linewidth=1.8, label=label)


def _baselines(axes: Axes, values: Mapping[str, float]) -> None:
    """Dashed lines, each named beside the picture; names of near lines are moved apart."""
    height = -np.inf
    gap = max([*values.values(), 20.0]) / 18
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1)
        height = max(value, height + gap)
        beside = ("axes fraction", "data")
        axes.annotate(f"{name} {value:.0f}", (1.01, height), xycoords=beside, va="center", fontsize=8, color=GREY)


def _finish(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _models(axes: Axes, models: Sequence[Model], colours: Mapping[str, str]) -> None:
    """The dots, large ones behind small ones, and the arrows."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_xscale("log")
    for model in sorted(models, key=lambda model: -model.parameters):
        x, y, colour = model.images_per_second, 100 * model.accuracy, colours[model.method]
        area = model.parameters / PARAMETERS_OF_A_POINT
        axes.scatter([x], [y], s=area, color=colour, alpha=0.75, linewidths=0, zorder=2)
        if model.start is not None:
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1, "shrinkA": 0, "shrinkB": area**0.5 / 2}
            axes.annotate("", (x, y), (x, 100 * model.start), arrowprops=arrow)
            axes.update_datalim([(x, 100 * model.start)])
    axes.margins(x=0.12, y=0.08)
    axes.autoscale_view()
    low, high = axes.get_xlim()
    # Within less than a factor of 10 there may be no three of 1, 2, 5, 10, ...
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(5, min_n_ticks=3))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.grid(axis="x", color="0.92")


def _model_legend(figure: Figure, colours: Mapping[str, str], *, arrows: bool) -> None:
    """Below the pictures, in two rows: what the colours are; what the areas are, and the arrows."""
    from matplotlib.lines import Line2D

    def entry(label: str, colour: str = "none", area: float = 36, marker: str = "o") -> Line2D:
        look = {"color": colour, "marker": marker, "markersize": area**0.5, "markeredgewidth": 0}
        return Line2D([], [], linestyle="", label=label, alpha=0.75, **look)

    above = [entry(method, colour) for method, colour in colours.items()]
    sizes = {"25 M": 25e6, "100 M": 100e6, "400 M parameters": 400e6}
    below = [entry(label, "0.75", number / PARAMETERS_OF_A_POINT) for label, number in sizes.items()]
    if arrows:
        below.append(entry(r"$L_V \to L_V + L_R$", GREY, marker=r"$\uparrow$"))
    columns = itertools.zip_longest(above, below)  # a legend is filled column by column
    handles = [handle or entry("") for column in columns for handle in column]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) // 2,
        frameon=False,
        fontsize=8,
        handletextpad=0.5,
        columnspacing=1.2,
    )


def _model_names(axes: Axes, models: Sequence[Model]) -> None:
    """Each name near its dot, nearer to it than to others, where it covers the least of all that is drawn."""
    point = axes.figure.dpi / 72  # in pixels
    centres = axes.transData.transform([(model.images_per_second, 100 * model.accuracy) for model in models])
    radii = [point * (model.parameters / PARAMETERS_OF_A_POINT) ** 0.5 / 2 for model in models]
    drawn: list[list[np.ndarray]] = []  # of each model: its dot and its arrow
    for model, centre, r in zip(models, centres, radii, strict=True):
        drawn.append([np.array([*(centre - r), *(centre + r)])])
        if model.start is not None:
            end = axes.transData.transform((model.images_per_second, 100 * model.start))
            drawn[-1].append(np.array([*(np.minimum(centre, end) - 2 * point), *(np.maximum(centre, end) + 2 * point)]))
    inside = np.array(axes.get_window_extent().extents)
    places = [(side / np.hypot(*side), side, gap * point) for gap in (3, 8, 16) for side in AROUND]
    texts, boxes, costs = [], [], []
    for n, (model, centre, radius) in enumerate(zip(models, centres, radii, strict=True)):
        at = (model.images_per_second, 100 * model.accuracy)
        text = axes.annotate(model.name, at, (0, 0), textcoords="offset points", fontsize=7.5, color="0.25")
        text.set_in_layout(False)
        # More than it takes: letters are wider at other resolutions, and names in a row should not read as one.
        size = np.array(text.get_window_extent().size) * (1.06, 1) + (3 * point, 0)
        others = [part for m, parts in enumerate(drawn) if m != n for part in parts]
        around, cost = [], []
        for way, side, gap in places:
            start = centre + way * (radius + gap)
            box = np.array([*(start + (side - 1) * size / 2), *(start + (side + 1) * size / 2)])
            covered = sum(_overlap(box, part) for part in drawn[n] + others)
            # A name that begins nearer to another dot would be read as that one's.
            astray = any(_distance(start, part) < gap for part in others)
            around.append(box)
            cost.append(covered + 10 * _outside(box, inside) + np.prod(size) * astray + 2 * gap)
        texts.append(text)
        boxes.append(around)
        costs.append(np.array(cost))
    chosen = [int(np.argmin(cost)) for cost in costs]
    for _ in range(5):  # each in turn makes room for the others
        for n, around in enumerate(boxes):
            others = [boxes[m][k] for m, k in enumerate(chosen) if m != n]
            chosen[n] = int(np.argmin(costs[n] + [sum(_overlap(box, other) for other in others) for box in around]))
    for text, radius, k in zip(texts, radii, chosen, strict=True):
        way, side, gap = places[k]
        text.set(ha=("center", "left", "right")[int(side[0])], va=("center", "bottom", "top")[int(side[1])])
        text.xyann = tuple(way * (radius + gap) / point)


def _overlap(one: np.ndarray, two: np.ndarray) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    return float(np.prod(sides.clip(min=0)))


def _distance(point: np.ndarray, box: np.ndarray) -> float:
    """From a point to a box, 0 inside."""
    return float(np.hypot(*np.maximum(point - box[2:], box[:2] - point).clip(min=0)))


def _outside(box: np.ndarray, frame: np.ndarray) -> float:
    """Area of a box that lies outside a frame."""
    return float(np.prod(box[2:] - box[:2])) - _overlap(box, frame)


def _rows(table: Mapping[str, Any] | None) -> dict[str, float]:
    """Known rows in their order, then others; without those that hold no number."""
    table = table or {}
    order = [*(name for name in ROWS if name in table), *(name for name in table if name not in ROWS)]
    return {name: float(table[name]) for name in order if table[name] is not None}


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _crop_name(index: int, num_global: int) -> str:
    return f"global {index + 1}" if index < num_global else f"local {index - num_global + 1}"


def _array(x: Any) -> np.ndarray:
    return np.asarray(x.detach().cpu().float() if hasattr(x, "detach") else x, dtype=np.float64)


def _picture(x: Any) -> np.ndarray:
    """(c h w) of any range -> (h w 3) or (h w) in 0-1."""
    is_bytes = str(getattr(x, "dtype", "")).endswith("uint8")
    array = _array(x).transpose(1, 2, 0)
    if is_bytes:
        array = array / 255
    low, high = array.min(), array.max()
    if low < 0 or high > 1:  # normalised: show it over its own range
        array = (array - low) / max(high - low, 1e-12)
    return array if array.shape[2] == 3 else array[:, :, 0]
