"""What fits into a device's memory, and what to do where it does not."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import toys

from esvit_pl.modules import Pretrainer
from esvit_pl.profiling.batch_size import GIB, Verdict, judge
from esvit_pl.profiling.memory import Need, predict

PAIR = (32, 32)


def small(**overrides: Any) -> Pretrainer:
    """Of few operations: the view loss alone."""
    return toys.pretrainer({"region_weight": 0.0, "view_weight": 1.0}, **overrides)


def parts(module: Pretrainer) -> tuple[Any, Any]:
    return module.step, module.optimizer


def pretended(step: Any, recipe: Any, *, batch_size: int, accumulate: int, **how: Any) -> Need:
    """0.7 GiB an image, 1 GiB for the rest, and another for gradients that are kept."""
    size = int((1 + 0.7 * batch_size + (accumulate > 1)) * GIB)
    return Need(batch_size, accumulate, size, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("available", "line"),
    [
        (60, "batch 64 needs 45.8 GiB; 60.0 GiB are available: it fits"),
        (
            48,
            "batch 64 needs 45.8 GiB; 48.0 GiB are available, 10 % of them to stay free. 32 fits (24.4 GiB): "
            "datamodule.batch_size=32 trainer.accumulate_grad_batches=2",
        ),
        (
            24,
            "batch 64 needs 45.8 GiB; 24.0 GiB are available. 16 fits (13.2 GiB): "
            "datamodule.batch_size=16 trainer.accumulate_grad_batches=4",
        ),
        (
            1,
            "batch 64 needs 45.8 GiB; 1.0 GiB are available. No batch fits, one image takes 2.7 GiB: choose a smaller "
            "backbone, fewer or smaller views (augment.num_local, augment.global_size), smaller heads (settings of the "
            "loss), or trainer.precision=bf16-mixed",
        ),
    ],
)
def test_the_verdict_says_what_to_do(available, line):
    assert str(judge(*parts(toys.pretrainer()), batch=64, available_bytes=available * GIB, predict=pretended)) == line


@pytest.mark.parametrize(
    ("batch", "fitting", "split"), [(64, 24, (16, 4)), (64, 60, (32, 2)), (96, 40, (32, 3)), (7, 5, (1, 7))]
)
def test_a_batch_is_split_into_the_fewest_equal_parts_that_fit(batch, fitting, split):
    there = int((2.01 + 0.7 * fitting) * GIB)
    verdict = judge(*parts(toys.pretrainer()), batch=batch, available_bytes=there, margin=0, predict=pretended)
    assert (verdict.micro_batch, verdict.accumulate) == split


def test_batch_norm_is_told_of_micro_batches():
    module = toys.pretrainer({"batch_norm": True})
    line = str(judge(*parts(module), batch=64, available_bytes=24 * GIB, predict=pretended))
    assert line.endswith("trainer.accumulate_grad_batches=4; batch norm then sees 16 images at a time")


def test_batch_norm_is_not_given_single_images():
    module, asked = toys.pretrainer({"batch_norm": True}), []

    def too_large(step: Any, recipe: Any, *, batch_size: int, **how: Any) -> Need:
        asked.append(batch_size)
        return pretended(step, recipe, batch_size=batch_size, **how)

    line = str(judge(*parts(module), batch=6, available_bytes=GIB, predict=too_large))
    assert "No batch fits, the smallest with batch norm takes 3.4 GiB" in line
    assert min(asked) == 2


def test_a_verdict_of_true_predictions():
    at = cache(partial(predict, *parts(small()), sides=PAIR))

    def remembered(step: Any, recipe: Any, **how: Any) -> Need:
        return at(**how)

    limit = at(batch_size=3, accumulate=2).predicted_bytes
    how = {"available_bytes": limit, "margin": 0, "predict": remembered}
    assert judge(*parts(toys.pretrainer()), batch=4, **how) == Verdict(
        batch=4,
        needed_bytes=at(batch_size=4, accumulate=1).predicted_bytes,
        available_bytes=limit,
        micro_batch=2,
        accumulate=2,
        micro_bytes=at(batch_size=2, accumulate=2).predicted_bytes,
        batch_norm=False,
        margin=0,
    )
    at_once = at(batch_size=3, accumulate=1).predicted_bytes
    assert judge(*parts(toys.pretrainer()), batch=3, **how) == Verdict(3, at_once, limit, 3, 1, at_once, False, 0)
