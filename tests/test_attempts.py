"""docs/attempts.py: what strangers send runs nothing, in real commands; the control runs."""

from __future__ import annotations

import pytest

from docs.attempts import ATTEMPTS, MARK, PAGE, Outcome, row, tried


@pytest.mark.slow
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: f"{attempt.where}: {attempt.what}")
def test_an_attempt_is_refused_and_the_control_is_not(attempt, tmp_path):
    outcome = tried(attempt, tmp_path)
    if attempt.where == "the control":
        assert (outcome.ran, outcome.code) == (True, 0), outcome.said
    else:
        assert (outcome.ran, outcome.code) == (False, 1), outcome.said
        words = ("stranger", "only the shell sets", "PYTHONPATH", "pickle")
        assert any(word in outcome.said for word in words), outcome.said


def test_the_page_shows_every_attempt():
    page = PAGE.read_text(encoding="utf-8").partition(MARK)[2]
    for attempt in ATTEMPTS:
        assert row(attempt, Outcome(attempt.where == "the control", 1, "")) in page
