"""What counts as healthy, and what a measure outside its range means. Loads no torch: reports read it."""

from __future__ import annotations

import math
from typing import NamedTuple


class Healthy(NamedTuple):
    """The range of a healthy measure, ends included; None is no bound."""

    low: float | None = None
    high: float | None = None

    def holds(self, value: float) -> bool:
        """Whether the value is inside; nan never is, unless there is no bound at all."""
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        return low <= value <= high or self == Healthy()


HEALTHY: dict[str, Healthy] = {
    "feature_spread": Healthy(low=0.05),
    "effective_rank": Healthy(low=3.0),
    "region_diversity": Healthy(low=0.02),
    "teacher_entropy_share": Healthy(high=0.98),
    "kl": Healthy(low=0.01),
    "matched_share": Healthy(low=0.1),
    "chance_share": Healthy(high=0.98),
    "center_norm": Healthy(),
}
"""Default ranges; docs/recipes.md, "Health", has the runs behind them.

A sharp teacher is not a bad sign, so the entropy has no lower bound: if all images get one prototype, the divergence
shows it. The norm of the centre says something only when it is compared with that of earlier steps.
"""

MEANINGS: dict[str, str] = {
    "feature_spread": "how far apart the features of two images are; 0: all images look the same",
    "effective_rank": "how many directions the features use",
    "region_diversity": "how much the regions of an image differ; 0: not at all",
    "teacher_entropy_share": "how uniform the teacher's distributions are; 1: they say nothing",
    "kl": "what the student still has to learn from the teacher, in nats",
    "matched_share": "share of the teacher's regions that a region of the student is matched to",
    "chance_share": "the loss, divided by that of a network that guesses; 1: nothing is learnt",
    "center_norm": "length of the centre that is taken off the teacher's answers",
}
"""What a measure tells, in a few words."""

ADVICE: dict[str, str] = {
    "feature_spread": (
        "all images get almost the same feature. Usual causes: the teacher shares its weights with the student or "
        "follows it too fast (raise the momentum), no centre, a learning rate too high"
    ),
    "effective_rank": (
        "the features differ in one or two directions only. Usual causes: the teacher follows the student too fast "
        "(raise the momentum), no centre, a learning rate too high"
    ),
    "region_diversity": (
        "all regions of an image get almost the same feature. Look at the region loss, which is there to prevent it "
        "(its weight, batch norm in its head), and at the number of regions of a crop"
    ),
    "teacher_entropy_share": (
        "the teacher's distributions are uniform, and there is nothing to learn from them. Usual causes: a teacher "
        "temperature too high (0.04 to 0.07), a centre that moves too fast, a learning rate too high"
    ),
    "kl": (
        "the student predicts the teacher without seeing what it saw. Usual causes: the teacher is the student, both "
        "give one answer to all images, or student and teacher get the same crop"
    ),
    "matched_share": (
        "regions of all kinds are matched to the same few teacher regions. Usual cause: the backbone's regions have "
        "become equal; see region_diversity"
    ),
    "chance_share": (
        "the loss is that of a network that guesses. Early in a training it may rise to that level before it falls. "
        "Usual causes later: a learning rate too high, a temperature that does not suit the batch, features that have "
        "become equal (see feature_spread)"
    ),
}
"""What a measure outside its range means and what to look at."""


def measure_of(name: str) -> str | None:
    """The measure that a diagnostic's name ends in: "region_kl" -> "kl"; None if it ends in no measure."""
    return next((measure for measure in HEALTHY if name == measure or name.endswith(f"_{measure}")), None)


def symptom(name: str, value: float, healthy: Healthy) -> str:
    """One line about a value outside its healthy range: what, why, what to do."""
    if math.isnan(value):
        return f"{name} is not a number: features or loss are not finite; lower the learning rate"
    below = healthy.low is not None and value < healthy.low
    side, bound = ("below", healthy.low) if below else ("above", healthy.high)
    measure = measure_of(name) or name
    default = HEALTHY.get(measure, Healthy())
    explained = (default.low if below else default.high) is not None
    return f"{name} = {value:.3g} {side} {bound:g}" + (f": {ADVICE[measure]}" if explained else "")
