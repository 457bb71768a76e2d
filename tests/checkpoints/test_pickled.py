from __future__ import annotations

import argparse
import os
import pickle

import pytest
import torch

from esvit_pl.checkpoints.pickled import read_pickled


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_tensors_and_the_released_settings_are_read(tmp_path):
    content = {"student": {"w": torch.arange(3.0)}, "epoch": 7, "args": argparse.Namespace(arch="swin", sizes=(8,))}
    torch.save(content, tmp_path / "a.pth")
    read = read_pickled(tmp_path / "a.pth")
    assert torch.equal(read["student"]["w"], torch.arange(3.0))
    assert (read["epoch"], vars(read["args"])) == (7, {"arch": "swin", "sizes": (8,)})


@pytest.mark.parametrize("where", ["beside the weights", "in the settings"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_malicious_file_is_refused_by_name_and_leaves_no_trace(tmp_path, where, zipped):
    path, marker = tmp_path / "bad.pth", tmp_path / "marker"
    bad = Malicious(marker)
    content = {"x": bad} if where == "beside the weights" else {"args": argparse.Namespace(lr=bad)}
    torch.save({"student": {}, **content}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=rf"bad.pth is refused: .* {os.system.__module__}.system.* Nothing of it was run"
    ):
        read_pickled(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(bad))
    assert marker.exists()  # it would have


def test_other_classes_are_refused_by_name(tmp_path):
    from pathlib import Path

    torch.save({"args": {"path": Path("a")}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="is refused: .*PosixPath.*as safetensors"):
        read_pickled(tmp_path / "a.pth")


def test_afterwards_namespaces_are_no_more_trusted_than_before(tmp_path):
    torch.save(argparse.Namespace(a=1), tmp_path / "a.pth")
    read_pickled(tmp_path / "a.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and then nothing"])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(ValueError, match="broken.pth cannot be read as a checkpoint"):
        read_pickled(tmp_path / "broken.pth")
