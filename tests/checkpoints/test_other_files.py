"""What people give for weights by mistake, and what they read then."""

from __future__ import annotations

import gzip
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from esvit_pl.backbones import build
from esvit_pl.checkpoints import read_checkpoint

BYTES = {
    b"": r"it is empty \(0 bytes\); download or save it again",
    b"<!DOCTYPE html><html><body>Sign in</body></html>": "it is a web page; the server sent it in place of the file",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n": "a pointer of git-lfs, .* run git lfs pull",
    gzip.compress(b"weights", mtime=0): "it is compressed with gzip; unpack it first",
    b"hello world, these are notes": "it is a text file, which begins with 'hello world",
    b'{"metadata": {}, "weight_map": {"a": "b"}}': "it is the index of weights in several files",
    b"PK\x03\x04 and then nothing": r"its end is missing \(21 bytes are there\); download or copy it again",
    b"\x89HDF\r\n\x1a\n": "it is an HDF5 file",
    b"\xef\xbb\xbf<!DOCTYPE html>": "it is a web page",
    pickle.dumps({"a": [1]}): "it is a pickle that torch.save did not write, and nothing of it was run",
    bytes(600): "torch.save did not write it, or it is damaged; download it again, or save the weights anew$",
}


@pytest.mark.parametrize("content", BYTES, ids=lambda content: content[:8].decode("latin1"))
def test_files_that_hold_something_else(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.pth cannot be read as a checkpoint: .*{BYTES[content]}"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_archives_and_programs(tmp_path):
    np.savez(tmp_path / "a.npz", weight=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("weights.pth", b"")
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        tar.add(tmp_path / "b.zip", "inner.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "d.pt")
    for name, said in {
        "a.npz": "an archive of numpy",
        "b.zip": "a zip archive that holds weights.pth; unpack it first",
        "c.tar": "a tar archive that holds inner.pth; unpack it first",
        "d.pt": r"a program \(TorchScript\), and nothing of it was run",
    }.items():
        with pytest.raises(ValueError, match=f"{name} cannot be read as a checkpoint: it is {said}"):
            read_checkpoint(tmp_path / name)


def test_a_download_that_broke_off(tmp_path):
    backbone = build("swin", embed_dim=8, depths=[1], num_heads=[1])
    torch.save(backbone.state_dict(), tmp_path / "a.pth")
    save_file(backbone.state_dict(), tmp_path / "a.safetensors")
    for name, said in {
        "a.pth": "cannot be read as a checkpoint: its end",
        "a.safetensors": "cannot be read as",
    }.items():
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"{name} {said}"):
            read_checkpoint(tmp_path / name)


def test_names_do_not_matter(tmp_path):
    """MoCo's .pth.tar is a file of torch.save, and so is a file without an ending; the old format, too."""
    backbone = build("swin", embed_dim=8, depths=[1], num_heads=[1])
    for name in ("a.pth.tar", "a", "a.txt"):
        for zipped in (True, False):
            torch.save({"state_dict": backbone.state_dict()}, tmp_path / name, _use_new_zipfile_serialization=zipped)
            assert read_checkpoint(tmp_path / name).backbone["embed_dim"] == 8
