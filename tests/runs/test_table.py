from __future__ import annotations

from pathlib import Path

import pytest

from esvit_pl.runs.reading import Run
from esvit_pl.runs.table import (
    Spread,
    as_text,
    differing,
    dots,
    goal,
    measured,
    ranked,
    report,
    run_table,
    seed_table,
    shown,
    write_csv,
)


def run(name, knn=None, loss=None, status="finished", goal=None, error=None, **overrides):
    results = {"knn/top1": knn, "train/view_loss": loss}
    overrides = {key.replace("__", "."): value for key, value in {"trainer": "cpu", **overrides}.items()}
    results = {key: value for key, value in results.items() if value is not None}
    return Run(Path("logs") / name, overrides, status, epochs=2, steps=8, results=results, goal=goal, error=error)


RUNS = [
    run("0", 0.5, 4.25, optimizer__lr="0.01", seed="1"),
    run("1", 0.75, 4.0, optimizer__lr="0.01", seed="2"),
    run("2", 0.625, 3.5, optimizer__lr="0.0037561961", seed="1"),
    run("3", status="failed", optimizer__lr="1e30", seed="1", error="NonFiniteLoss: the loss is not finite"),
]


def names(runs):
    return [one.folder.name for one in runs]


def test_the_report_word_for_word():
    assert report(ranked(RUNS, "knn/top1"), base="logs") == (
        "run  optimizer.lr  seed  status    epochs  steps  knn/top1  train/view_loss\n"
        "  1          0.01     2  finished       2      8     75.0%                4\n"
        "  2      0.003756     1  finished       2      8     62.5%              3.5\n"
        "  0          0.01     1  finished       2      8     50.0%             4.25\n"
        "  3          1e30     1  failed         2      8         -                -\n"
        "\n"
        "3: NonFiniteLoss: the loss is not finite\n"
        "\n"
        "mean ± standard deviation over the seeds of finished runs\n"
        "optimizer.lr  seeds      knn/top1  train/view_loss\n"
        "        0.01      2  62.5 ± 17.7%     4.125 ± 0.18"
    )


def test_only_settings_that_differ_are_shown_and_a_missing_one_differs():
    assert differing(RUNS) == ["optimizer.lr", "seed"]
    assert differing([run("0"), run("1", loss=1.0, tags="[a]")]) == ["tags"]
    assert differing(RUNS[:1]) == []


@pytest.mark.parametrize(
    ("by", "reverse", "order"),
    [
        ("knn/top1", False, "1203"),
        ("knn/top1", True, "0213"),
        ("train/view_loss", False, "2103"),
        ("optimizer.lr", False, "2013"),
        ("optimizer.lr", True, "3012"),
        ("status", False, "3012"),
        ("steps", False, "0123"),
    ],
)
def test_the_best_comes_first_and_who_has_no_value_last(by, reverse, order):
    assert "".join(names(ranked(RUNS, by, reverse=reverse))) == order


def test_nan_is_no_best_value():
    assert names(ranked([run("0", 0.5), run("1", float("nan")), run("2", 0.75)], "knn/top1")) == ["2", "0", "1"]


def test_numbers_come_before_words():
    runs = [run("0", k="auto"), run("1", k="10"), run("2", k="9")]
    assert names(ranked(runs, "k")) == ["2", "1", "0"]


def test_a_value_that_no_run_has_is_refused():
    with pytest.raises(ValueError, match=r"sort=knn/top2: no run has it; did you mean knn/top1\?"):
        ranked(RUNS, "knn/top2")
    with pytest.raises(ValueError, match="sort=zzz: no run has it; there are optimizer.lr, seed, status"):
        ranked(RUNS, "zzz")


def test_columns_are_names_or_patterns_in_the_order_given():
    runs = [Run(Path("a"), results={"train/b_loss": 1, "knn/top1": 1, "train/a_loss": 1, "train/lr": 1})]
    assert measured(runs, ["train/*_loss", "knn/top1", "train/b_loss", "linear/top1"]) == [
        "train/b_loss",
        "train/a_loss",
        "knn/top1",
    ]


def test_the_csv_holds_all_digits(tmp_path):
    path = write_csv(run_table(RUNS[1:3], ["knn/*"], base="logs"), tmp_path / "new" / "table.csv")
    assert path.read_text() == (
        "run,optimizer.lr,seed,status,epochs,steps,knn/top1\n"
        "1,0.01,2,finished,2,8,0.75\n"
        "2,0.0037561961,1,finished,2,8,0.625\n"
    )


def test_seeds_are_put_together_where_nothing_else_differs():
    table = seed_table(RUNS, ["knn/top1"])
    assert table is not None
    assert table.header == ["optimizer.lr", "seeds", "knn/top1"]
    assert table.rows[0] == ["0.01", 2, Spread(0.625, pytest.approx(0.125 * 2**0.5))]  # of 0.5 and 0.75, by hand
    assert seed_table([RUNS[0], RUNS[2]]) is None  # no two of a kind
    running = run("1", 0.75, status="running", seed="2")
    assert seed_table([run("0", 0.5, seed="1"), running]) is None


def test_a_picture_gets_short_names_and_groups_without_a_value():
    assert dots(RUNS, "knn/top1") == {"lr=0.01": [0.5, 0.75], "lr=0.003756": [0.625], "lr=1e30": []}
    twice = [run("0", 0.5, a__lr="1", b__lr="1"), run("1", 0.5, a__lr="2", b__lr="2")]
    assert list(dots(twice, "knn/top1")) == ["a.lr=1  b.lr=1", "a.lr=2  b.lr=2"]
    assert dots([run("0", 0.5, seed="1"), run("1", 0.25, seed="2")], "knn/top1") == {"the same settings": [0.5, 0.25]}
    assert list(dots([run("0", 0.5, tags="[a]"), run("1", 0.25)], "knn/top1")) == ["tags=[a]", "as configured"]


def test_the_goal_is_what_all_runs_were_to_improve():
    assert goal([run("0", 0.5, 4.0, goal="train/view_loss"), run("1", goal="train/view_loss")]) == "train/view_loss"
    assert goal([run("0", 0.5, 4.0, goal="train/view_loss"), run("1")]) == "knn/top1"
    assert goal([run("0", 0.5, goal="linear/top1")]) == "knn/top1"  # nobody has measured it
    assert goal([run("0", loss=4.0)]) is None


@pytest.mark.parametrize(
    ("cell", "name", "text"),
    [
        (None, "knn/top1", "-"),
        (0.6314, "knn/cls/k20/top1", "63.1%"),
        (0.6314, "train/teacher_temp", "0.6314"),
        (1e-6, "train/lr", "1e-06"),
        ("0.00375619614449984", "optimizer.lr", "0.003756"),
        ("x" * 40, "dataset.root", "x" * 31 + "…"),
        ("x" * 40, "run", "x" * 40),
    ],
)
def test_a_cell_in_a_terminal(cell, name, text):
    assert shown(cell, name) == text


def test_words_stand_left_and_numbers_right():
    runs = [run("a", 0.5, loss_="view"), run("long", 0.05, loss_="view_region")]
    assert as_text(run_table(runs, ["knn/top1"], base="logs")).splitlines()[1:] == [
        "a     view         finished       2      8     50.0%",
        "long  view_region  finished       2      8      5.0%",
    ]


def test_runs_without_notes_are_no_seeds_of_one_another():
    runs = [Run(Path(name), status="finished", results={"knn/top1": 0.5}) for name in ("a", "b")]
    assert seed_table(runs) is None
