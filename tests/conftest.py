"""What every test gets: the same random numbers in any order, no window for a figure, no runs in the checkout."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
from commandline import commands, nothing_drawn, pictures, pretrained, unlabelled  # noqa: F401 - fixtures

os.environ.setdefault("MPLBACKEND", "Agg")
# Without a GPU Triton interprets its kernels; it asks when it is first imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Seed what is loaded; a test of the front door must not load torch for it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _runs_go_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESVIT_LOG_DIR", str(tmp_path_factory.getbasetemp() / "logs"))
