"""Every golden file has a test."""

from __future__ import annotations

import json
from pathlib import Path

import golden_files
import pytest

pytestmark = pytest.mark.golden

TESTED = ("swin_", "cvt", "vil_", "head", "knn", "loss_view", "trajectory_", "schedules", "checkpoint_")


def unknown(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir() if path.name != "README.md"]
    return [name for name in names if not name.startswith(TESTED)]


def test_every_golden_file_is_known():
    assert unknown(golden_files.FOLDER) == []


@pytest.mark.parametrize("prefix", TESTED)
def test_every_prefix_has_files(prefix):
    """A comparison with nothing passes."""
    assert list(golden_files.FOLDER.glob(f"{prefix}*")), f"no {prefix}* in {golden_files.FOLDER}"


def test_a_file_that_no_test_knows_is_noticed(tmp_path):
    for name in ("swin_w9.safetensors", "convnext.safetensors"):
        (tmp_path / name).touch()
    assert unknown(tmp_path) == ["convnext.safetensors"]


def test_settings_are_taken_from_the_files():
    for path in golden_files.paths("trajectory_"):
        assert json.dumps(golden_files.read(path).settings)
