from __future__ import annotations

import json

import golden_files
import pytest

from esvit_pl.schedules import SHAPES, Progress, cosine, in_steps, linear, scheduled

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
