"""What counts as flat: a leak is seen, noise is not."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.soak import ALLOWED, MIB, SPEED, draw, trends


def samples(**changed) -> dict[str, list[float]]:
    seconds = np.arange(0.0, 600, 2)
    noise = np.random.default_rng(0).normal(size=len(seconds))
    made = {
        "main memory": 500 * MIB + MIB * noise,
        "workers' memory": 200 * MIB + MIB * noise,
        "shared memory": MIB * (noise > 0),
        "handles": 60 + np.round(noise),
        "threads": 10 + 0 * noise,
        "steps": np.round(5 * seconds),
        "cpu seconds": 1.5 * seconds,
    }
    rising = {name.replace("_", " "): made[name.replace("_", " ")] + by * seconds for name, by in changed.items()}
    return {name: list(values) for name, values in ({"seconds": seconds} | made | rising).items()}


def not_flat(found) -> list[str]:
    return [row.what for row in trends(found) if not row.flat]


def test_noise_and_a_warm_up_are_flat():
    found = samples()
    found["main memory"][:40] = [100.0 * MIB] * 40
    assert not_flat(found) == []
    assert [row.what for row in trends(found)] == [*ALLOWED, SPEED]


@pytest.mark.parametrize(
    ("name", "by"), [("main_memory", MIB / 20), ("shared_memory", MIB / 20), ("handles", 0.01), ("threads", 0.01)]
)
def test_what_grows_is_told(name, by):
    assert not_flat(samples(**{name: by})) == [name.replace("_", " ")]


def test_a_training_that_slows_down_is_told(tmp_path):
    found = samples()
    found["steps"] = list(5 * np.array(found["seconds"]) - 0.002 * np.array(found["seconds"]) ** 2)
    assert not_flat(found) == [SPEED]
    assert draw(found, tmp_path / "soak.png").stat().st_size > 0
