from __future__ import annotations

import json

import golden_files
import pytest

from esvit_pl.schedules import SHAPES, Duration, Progress, cosine, in_steps, linear, scheduled

SCHEDULES = [json.loads(path.read_text()) for path in sorted(golden_files.FOLDER.glob("schedules*.json"))]
COSINES = [case for file in SCHEDULES for case in file["cosine"]]


@pytest.mark.golden
@pytest.mark.parametrize("case", COSINES, ids=lambda case: f"{case['base']}-{case['final']}")
def test_warmup_cosine_is_the_released_one(case):
    steps = case["steps_per_epoch"]
    values = [
        scheduled(
            "cosine",
            step,
            case["epochs"] * steps,
            start=case["base"],
            end=case["final"],
            warmup=case["warmup_epochs"] * steps,
            warmup_start=case["warmup_start"],
        )
        for step in range(case["epochs"] * steps)
    ]
    assert values == pytest.approx(case["values"], rel=1e-12, abs=0)


@pytest.mark.golden
@pytest.mark.parametrize(
    "case", [file["teacher_temp"] for file in SCHEDULES], ids=lambda case: str(case["warmup_epochs"])
)
def test_teacher_temperature_is_the_released_one(case):
    values = [
        scheduled(
            "constant",
            epoch,
            case["epochs"],
            start=case["final"],
            end=case["final"],
            warmup=case["warmup_epochs"],
            warmup_start=case["warmup_start"],
        )
        for epoch in range(case["epochs"])
    ]
    assert values == pytest.approx(case["values"], rel=1e-12, abs=0)


def test_cosine_by_hand():
    assert cosine(0, 4, start=1, end=0) == 1
    assert cosine(2, 4, start=1, end=0) == pytest.approx(0.5)
    assert cosine(4, 4, start=1, end=0) == 0


def test_linear_by_hand():
    assert [linear(step, 4, start=1.0, end=3.0) for step in range(5)] == [1.0, 1.5, 2.0, 2.5, 3.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_starts_where_the_warm_up_ends(shape):
    values = [scheduled(shape, step, 8, start=1.0, end=0.5, warmup=3, warmup_start=0.2) for step in range(8)]
    assert values[:4] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert values[4:] == sorted(values[4:], reverse=True)


def test_warmup_of_all_steps_ends_at_the_start_value():
    assert [scheduled("cosine", step, 3, start=1.0, end=0.0, warmup=3) for step in range(3)] == [0.0, 0.5, 1.0]


def test_without_warmup_a_constant_is_constant():
    assert scheduled("constant", 0, 5, start=0.07, end=0.1, warmup_start=0.04) == 0.07


def test_progress_by_hand():
    progress = Progress.at(25, batches_per_epoch=20, epochs=3, accumulate=2)
    assert (progress.step, progress.total, progress.epoch, progress.epochs) == (12, 30, 1, 3.0)


def test_durations_in_epochs_may_be_fractions():
    assert in_steps(1.5, 7) == 10


def test_a_schedule_over_nothing_is_refused():
    with pytest.raises(ValueError, match="positive total"):
        cosine(0, 0, start=1, end=0)


@pytest.mark.parametrize(
    ("epochs", "warmup", "temperature", "frozen"),
    [
        (1, 0.1, 1, 0.01),
        (3, 0.3, 1, 0.03),
        (50, 5, 15, 0.5),
        (99, 9.9, 30, 0.99),
        (100, 10, 30, 1),
        (300, 10, 30, 1),
        (800, 10, 30, 1),
    ],
)
def test_durations_that_nobody_gave_are_as_published_or_a_share_of_a_shorter_training(
    epochs, warmup, temperature, frozen
):
    durations = [Duration(None, 10), Duration(None, 30, whole=True), Duration(None, 1)]
    assert [duration.of(epochs) for duration in durations] == pytest.approx([warmup, temperature, frozen])
    assert [duration.shrinks(epochs) for duration in durations] == [epochs < 100] * 3
    for duration in durations:
        duration.check("optimizer.warmup_epochs", epochs)


def test_a_given_duration_is_taken_as_it_is_and_refused_beyond_the_training():
    given = Duration(5, 10)
    assert (given.of(300), given.of(5), given.shrinks(5)) == (5, 5, False)
    given.check("optimizer.warmup_epochs", 5)
    with pytest.raises(ValueError, match=r"warmup_epochs=5 is longer .*max_epochs=3\).*warmup_epochs=0.3 would do"):
        given.check("optimizer.warmup_epochs", 3)
