"""Every golden file has a test, and files of other sizes pass the same tests.

Subfolders are not looked at: they hold values of other methods.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import golden_files
import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
TESTED = (
    "swin_",
    "cvt",
    "vil_",
    "head",
    "knn",
    "loss_view",
    "trajectory_",
    "schedules",
    "checkpoint_",
    "evaluation_label_free",
    "evaluation_logistic",
    "evaluation_multilabel",
    "evaluation_per_class",
    "rival_byol",
    "rival_densecl",
    "rival_mlps",
    "rival_moby_loss",
    "rival_moby_training",
    "rival_mocov3",
    "rival_simclr",
    "rival_swav",
)


def unknown(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir() if path.is_file() and path.name != "README.md"]
    return [name for name in names if not name.startswith(TESTED)]


@pytest.mark.golden
def test_every_golden_file_is_known():
    assert unknown(golden_files.FOLDER) == []


@pytest.mark.parametrize("prefix", TESTED)
def test_every_prefix_has_files_in_our_own_folder(prefix):
    """Without a file there is nothing to compare, and the comparison would be skipped."""
    assert list(golden_files.OWN_FOLDER.glob(f"{prefix}*"))


def test_a_file_that_no_test_knows_is_noticed(tmp_path):
    for name in ("swin_w9.safetensors", "convnext.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "rivals").mkdir()
    assert unknown(tmp_path) == ["convnext.safetensors"]


@pytest.mark.slow
def test_a_folder_with_a_few_files_of_other_sizes_passes(tmp_path):
    """217 of 300 answers of a k-NN are right, which no percentage with a few digits says; a ViL has another name."""
    right, classes = 217, torch.arange(300) % 3
    truth = torch.where(torch.arange(300) < right, classes, (classes + 1) % 3)
    tensors = {
        "train_features": torch.eye(3).repeat(20, 1),
        "train_labels": torch.arange(3).repeat(20),
        "test_features": torch.eye(3)[classes],
        "test_labels": truth,
    }
    settings = {"temperature": 0.1, "num_classes": 3, "top1_top5": {"4": [100 * right / 300, 100.0]}}
    save_file(tensors, tmp_path / "knn_300.safetensors", {key: json.dumps(value) for key, value in settings.items()})
    shutil.copy(golden_files.OWN_FOLDER / "vil_ape.safetensors", tmp_path / "vil_other.safetensors")
    (tmp_path / "evaluation").mkdir()

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "golden", "-p", "no:cacheprovider", "tests"],
        cwd=ROOT,
        env={**os.environ, "ESVIT_GOLDEN": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "passed" in run.stdout.splitlines()[-1], run.stdout
