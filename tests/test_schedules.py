from __future__ import annotations

import json

import golden_files
import pytest

from esvit_pl.schedules import cosine, in_steps, teacher_temperature, warmup_cosine

SCHEDULES = [json.loads(path.read_text()) for path in sorted(golden_files.FOLDER.glob("schedules*.json"))]
COSINES = [case for file in SCHEDULES for case in file["cosine"]]


@pytest.mark.golden
@pytest.mark.parametrize("case", COSINES, ids=lambda case: f"{case['base']}-{case['final']}")
def test_warmup_cosine_is_the_released_one(case):
    steps = case["steps_per_epoch"]
    values = [
        warmup_cosine(
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
        teacher_temperature(epoch, start=case["warmup_start"], end=case["final"], warmup_epochs=case["warmup_epochs"])
        for epoch in range(case["epochs"])
    ]
    assert values == pytest.approx(case["values"], rel=1e-12, abs=0)


def test_cosine_by_hand():
    assert cosine(0, 4, start=1, end=0) == 1
    assert cosine(2, 4, start=1, end=0) == pytest.approx(0.5)
    assert cosine(4, 4, start=1, end=0) == 0


def test_warmup_of_all_steps_ends_at_the_start_value():
    assert [warmup_cosine(s, 3, start=1.0, end=0.0, warmup=3) for s in range(3)] == [0.0, 0.5, 1.0]


def test_temperature_without_warmup_is_constant():
    assert teacher_temperature(0, start=0.04, end=0.07, warmup_epochs=0) == 0.07


def test_durations_in_epochs_may_be_fractions():
    assert in_steps(1.5, 7) == 10


def test_a_warmup_longer_than_training_is_refused():
    with pytest.raises(ValueError, match="10 of 5 steps"):
        warmup_cosine(0, 5, start=1.0, end=0.0, warmup=10)


def test_a_schedule_over_nothing_is_refused():
    with pytest.raises(ValueError, match="positive total"):
        cosine(0, 0, start=1, end=0)
