from __future__ import annotations

import sys

import matplotlib
import numpy as np
import pytest
import torch

from esvit_pl.profiling.throughput import published_models
from esvit_pl.visualize import (
    Model,
    accuracy_against_throughput,
    comparison,
    crops,
    learning_curve,
    neighbours,
    save,
    sweep,
)

TABLE = {"chance": 0.05, "untrained": 0.36, "pretrained": 0.63, "raw_pixels": 0.28, "histogram": None}


def drawn(figure, path) -> tuple[int, int]:
    """Width and height of the picture written."""
    from PIL import Image

    with Image.open(save(figure, path)) as image:
        assert len(np.unique(np.asarray(image))) > 10
        return image.size


def test_a_learning_curve_of_metrics_with_any_names():
    rows = [{"step": i, "epoch": i // 2, "a": 3.0 - i, "b": 1.0, "c": 0.5, "val/acc": 0.1 * i} for i in range(4)]
    above, below = learning_curve(rows, losses=["a", "b", "c"], accuracy="val/acc").axes
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["a", "b", "c"]
    assert above.lines[0].get_ydata().tolist() == [3.0, 2.0, 1.0, 0.0]
    assert below.get_ylabel() == "val/acc (%)"
    assert below.lines[0].get_ydata().tolist() == pytest.approx([0.0, 10.0, 20.0, 30.0])
    assert len(learning_curve(rows, losses=["a"], accuracy=None).axes) == 1
    assert len(learning_curve(rows, losses=[], accuracy="val/acc").axes) == 1
    with pytest.raises(ValueError, match="learning_curve needs rows with one of d; found none in 4 rows"):
        learning_curve(rows, losses=["d"], accuracy=None)


def test_the_accuracy_axis_shows_changes_and_names_what_lies_below():
    rows = [{"step": step, "epoch": step, "knn/top1": 0.5 + step / 100} for step in range(3)]
    baselines = {"chance": 0.05, "raw_pixels": 0.23, "untrained": 0.4}
    (axes,) = learning_curve(rows, baselines, losses=[], images=1140).axes
    assert axes.get_ylim() == pytest.approx((40 - 0.08 * 12, 52 + 0.08 * 12))
    assert [text.get_text() for text in axes.texts] == ["untrained 40", "below:\nraw pixels 23\nchance 5"]
    assert axes.get_ylabel() == "k-NN top-1 accuracy (%)\nof 1,140 images"


def test_a_learning_curve_of_one_epoch_shows_its_point():
    (axes,) = learning_curve([{"step": 3, "epoch": 0, "a": 3.0}], losses=["a"], accuracy=None).axes
    assert axes.lines[0].get_marker() == "o"


def test_learning_curve_shows_every_value_and_each_baseline(tmp_path) -> None:
    rows = [{"step": s, "epoch": s // 2, "train/view_loss": 5.0 - s, "train/region_loss": 4.0} for s in range(4)]
    rows += [{"step": 3, "epoch": 1, "knn/top1": 0.5}]
    figure = learning_curve(rows, {"raw_pixels": 0.28, "untrained": 0.29})
    above, below = figure.axes
    assert [line.get_label() for line in above.lines] == ["view loss", "region loss"]
    assert above.lines[0].get_xdata().tolist() == [0.5, 1, 1.5, 2]
    assert above.lines[0].get_ydata().tolist() == [5, 4, 3, 2]
    assert (below.lines[0].get_xdata().tolist(), below.lines[0].get_ydata().tolist()) == ([2.0], [50.0])
    assert [line.get_ydata()[0] for line in below.lines[1:]] == pytest.approx([28, 29])
    names = below.texts
    assert [text.get_text() for text in names] == ["raw pixels 28", "untrained 29"]
    assert names[1].xy[1] - names[0].xy[1] > 1.5  # the names of near lines do not overlap
    assert below.get_ylim() == pytest.approx((29 - 0.08 * 21, 50 + 0.08 * 21))
    assert below.get_xlabel() == "epoch"
    width, height = drawn(figure, tmp_path / "new" / "curve.png")
    assert width > 900
    assert height > 800


def test_every_loss_of_a_training_is_drawn_whatever_the_objective() -> None:
    rows = [{"step": 0, "train/contrastive_loss": 2.0, "train/lr": 0.1, "linear/train_loss": 3.0}]
    rows += [{"step": 1, "train/masked_patches_loss": 1.0}]
    assert [line.get_label() for line in learning_curve(rows).axes[0].lines] == [
        "contrastive loss",
        "masked patches loss",
    ]
    assert len(learning_curve([{"step": 0, "knn/top1": 0.5}]).axes) == 1
    with pytest.raises(ValueError, match=r"needs rows with one of train/\*_loss; found none in 1 rows"):
        learning_curve([{"step": 0, "train/lr": 0.5}], accuracy=None)


def test_learning_curve_of_one_loss_counts_steps(tmp_path) -> None:
    figure = learning_curve([{"step": s, "train/view_loss": float(s % 7)} for s in range(200)])
    (axes,) = figure.axes  # nothing was measured, so there is no empty picture of it
    noise, mean = axes.lines
    assert len(noise.get_xdata()) == 200
    assert mean.get_ydata().std() < noise.get_ydata().std() / 2
    assert axes.get_xlabel() == "step"
    drawn(figure, tmp_path / "curve.png")


def test_crops_draws_each_box_where_it_is(tmp_path) -> None:
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.25, 0.25, 0.5], [0.1, 0.1, 0.2, 0.2]])
    views = [torch.randn(3, 8, 8), torch.rand(3, 8, 8), torch.randn(3, 4, 4)]
    figure = crops(image, boxes, views, flipped=[False, True, False])
    whole = figure.subfigs[0].axes[0]
    corners = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in whole.patches]
    np.testing.assert_allclose(corners, [[-0.5, -0.5, 40, 20], [19.5, 4.5, 10, 10], [3.5, 1.5, 8, 4]], atol=1e-5)
    assert [cell.get_title() for cell in figure.subfigs[1].axes] == ["global 1", "global 2, mirrored", "local 1"]
    shown = figure.subfigs[1].axes[0].images[0].get_array()
    assert (shown.min(), shown.max()) == (0, 1)
    drawn(figure, tmp_path / "crops.png")


def test_comparison_keeps_the_order_and_leaves_out_what_is_missing(tmp_path) -> None:
    figure = comparison({"knn": TABLE, "linear": None, "status": "finished"})
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["chance", "raw pixels", "untrained", "pretrained"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([5, 28, 36, 63])
    drawn(figure, tmp_path / "comparison.png")
    assert len(comparison({"knn": TABLE, "linear": TABLE}).axes) == 2


def test_comparison_shows_intervals_and_how_many_images(tmp_path) -> None:
    about = {"intervals": {"knn": {"pretrained": [0.6, 0.66]}}, "images": {"query": 1140}}
    (axes,) = comparison({"knn": TABLE, "evaluation": about}).axes
    (interval,) = axes.lines
    assert interval.get_xdata() == pytest.approx((60, 66))
    assert axes.get_xlabel() == "top-1 accuracy (%) of 1,140 images\nand its 95 % interval"
    assert [text.get_text() for text in axes.texts] == ["5.0", "28.0", "36.0", "63.0"]
    drawn(axes.figure, tmp_path / "comparison.png")


def test_sweep_draws_a_dot_for_each_run_the_best_group_on_top(tmp_path) -> None:
    groups = {"lr=1": [0.5, 0.75], "lr=1e30": [], "lr=2": [0.7]}
    (axes,) = sweep(groups, "knn/top1").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["lr=2", "lr=1", "lr=1e30"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_xdata().tolist() for line in dots] == [[70.0], [50.0, 75.0], []]
    assert [line.get_ydata().tolist() for line in dots] == [[0.0], [1.0, 1.0], []]
    (mean,) = (line for line in axes.lines if line.get_marker() == "|")
    assert (mean.get_xdata()[0], mean.get_ydata()[0]) == (62.5, 1)
    assert [text.get_text() for text in axes.texts] == ["no value"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert axes.get_xlabel() == "knn/top1 (%)"
    drawn(axes.figure, tmp_path / "sweep.png")


def test_sweep_hides_no_dot_and_shows_where_it_began(tmp_path) -> None:
    (axes,) = sweep({"a": [0.5, 0.5, 0.75], "b": [0.25]}, "knn/top1", untrained=[0.125, 0.25]).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert dots[0].get_xdata().tolist() == [50.0, 50.0, 75.0]
    assert dots[0].get_ydata() == pytest.approx([-0.08, 0.08, 0.0])
    (band,) = axes.patches
    assert (band.get_x(), band.get_width(), band.get_label()) == (12.5, 12.5, "untrained")
    drawn(axes.figure, tmp_path / "sweep.png")


def test_sweep_of_losses_has_the_smallest_on_top(tmp_path) -> None:
    figure = sweep({f"lr={n} " + "x" * 80: [float(n % 7), n / 10] for n in range(30)}, "loss", smaller_is_better=True)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0].startswith("lr=0 xxx")
    assert max(map(len, names)) == 70
    assert figure.axes[0].get_xlabel() == "loss"
    width, height = drawn(figure, tmp_path / "sweep.png")
    assert (width < 1600) and (height < 1800)


def test_accuracy_against_throughput_draws_each_model_where_it_is(tmp_path) -> None:
    models = [Model("A", "small", 10, 0.7, 13_000_000, start=0.6), Model("B", "large", 1000, 0.8, 130_000_000)]
    figure = accuracy_against_throughput(models, models[:1], where="a toaster")
    above, below = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["published: one V100", "measured: a toaster"]
    large, small = above.collections  # small ones in front
    np.testing.assert_allclose([dot.get_offsets()[0] for dot in (small, large)], [[10, 70], [1000, 80]])
    assert large.get_sizes()[0] == pytest.approx(10 * small.get_sizes()[0])
    assert not np.array_equal(small.get_facecolor(), large.get_facecolor())
    (arrow,) = (text for text in above.texts if text.arrow_patch is not None)
    assert (arrow.xy, arrow.xyann) == ((10, pytest.approx(70)), (10, pytest.approx(60)))
    assert above.get_ylim()[0] < 60 < 80 < above.get_ylim()[1]
    assert above.get_ylim() == below.get_ylim()
    assert above.get_xscale() == "log"
    _, legend = figure.legends
    assert {"A", "B", "100 M"} <= {text.get_text() for text in legend.get_texts()}
    drawn(figure, tmp_path / "figure.png")


def test_numbers_lead_from_the_dots_to_the_names_the_best_model_first() -> None:
    models = [Model("A", "tiny", 10, 0.7, 13_000_000, start=0.6), Model("B", "tiny", 1000, 0.8, 130_000_000)]
    figure = accuracy_against_throughput(models, [models[0]._replace(images_per_second=50)])
    numbers = [{text.xy: text.get_text() for text in axes.texts if text.get_text()} for axes in figure.axes]
    assert numbers == [{(1000, 80.0): "1", (10, 70.0): "2"}, {(50, 70.0): "2"}]
    key = figure.legends[0]
    lines = [(line.get_marker(), text.get_text()) for line, text in zip(key.get_lines(), key.get_texts(), strict=True)]
    assert lines == [("$1$", "tiny"), ("$2$", "tiny")]
    assert len({line.get_color() for line in key.get_lines()}) == 2


def test_nothing_lies_on_the_key_or_the_legend() -> None:
    figure = accuracy_against_throughput(published_models(), published_models())
    figure.draw_without_rendering()
    key, legend = (part.get_window_extent() for part in figure.legends)
    pictures = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(picture.overlaps(part) for picture in pictures for part in (key, legend))
    assert key.y0 > legend.y1
    assert (legend.x0 > 0) and (key.x1 < figure.bbox.width)


@pytest.mark.parametrize("slowest", [1.7, 8.9, 2700])
@pytest.mark.parametrize("factor", [1.05, 1.3, 2, 4, 6, 10, 40])
def test_images_a_second_can_be_read_whatever_their_range(slowest, factor) -> None:
    models = [Model("A", f"model {x}", x, 0.7, 28_000_000) for x in (slowest, slowest * factor)]
    (axes,) = accuracy_against_throughput(models).axes
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 3 <= len(shown) <= 7


def test_no_window_and_no_global_state() -> None:
    backend = matplotlib.rcParams["backend"]
    comparison({"knn": TABLE})
    assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()
    assert matplotlib.rcParams["backend"] == backend


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="found none in 1 rows"):
        learning_curve([{"step": 1, "other": 2.0}])
    with pytest.raises(ValueError, match=r"boxes of shape \(2, 4\), one for each view, got \(1, 4\)"):
        crops(torch.zeros(3, 4, 4), torch.zeros(1, 4), [torch.zeros(3, 2, 2)] * 2)
    with pytest.raises(ValueError, match="results of knn or linear or logistic or few_shot or finetune, got status"):
        comparison({"status": "finished"})
    with pytest.raises(ValueError, match="sweep needs a value of knn/top1, got 1 groups without any"):
        sweep({"lr=1": []}, "knn/top1")
    with pytest.raises(ValueError, match="accuracy_against_throughput needs a model or more, got none"):
        accuracy_against_throughput([])


def test_neighbours_may_be_named_and_told_apart(tmp_path) -> None:
    image = torch.zeros(3, 8, 8)
    nearest, cosines = [[image, image], [image]], [[1.0, 0.25], [0.5]]
    names = [["cat", "a very long name"], ["<b>$dog$"]]
    figure = neighbours([image, image], nearest, cosines, names=names, titles=["pretrained", "untrained"])
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["pretrained", "1.00 cat", "0.25 a very lo…", "untrained", r"0.50 <b>\$dog\$"]
    drawn(figure, tmp_path / "neighbours.png")


def test_neighbours_show_the_query_then_its_nearest_images(tmp_path) -> None:
    red, blue = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    red[0], blue[2] = 1, 1
    figure = neighbours([red, blue], [[red, blue], [blue]], [[1.0, 0.25], [0.5]])
    shown = [cell for cell in figure.axes if cell.images]
    assert [cell.get_title() for cell in shown] == ["query", "1.00", "0.25", "query", "0.50"]
    assert [np.asarray(cell.images[0].get_array())[0, 0].tolist() for cell in shown[3:]] == [[0, 0, 1]] * 2
    drawn(figure, tmp_path / "neighbours.png")
    with pytest.raises(ValueError, match="a row of nearest images and cosines for each query, got 1 queries, 2 rows"):
        neighbours([red], [[red], [blue]], [[1.0]])


def test_right_and_wrong_neighbours_are_told_apart_by_colour_and_by_dashes():
    image = torch.zeros(3, 4, 4)
    figure = neighbours([image, image], [[image, image], [image]], [[1.0, 0.25], [0.5]], right=[[True, False], [True]])
    asked, right, wrong, _, also_right, _ = [cell.spines["left"] for cell in figure.axes]
    assert right.get_edgecolor() == also_right.get_edgecolor()
    assert len({line.get_edgecolor() for line in (asked, right, wrong)}) == 3
    assert (right.get_linestyle(), wrong.get_linestyle()) == ("-", "--")
    with pytest.raises(ValueError, match=r"right= with an answer for each nearest image, \[1\] of them, got \[2\]"):
        neighbours([image], [[image]], [[1.0]], right=[[True, False]])


def test_a_notebook_shows_a_figure_without_further_ado():
    shown = comparison({"knn": TABLE})._repr_png_()
    assert shown.startswith(b"\x89PNG")
