from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
import torch
import toys
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from esvit_pl.saving import WholeCheckpoints


def fit(root, ckpt_path=None):
    saver = ModelCheckpoint(root, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = toys.trainer(root, callbacks=[saver], plugins=[WholeCheckpoints()], enable_checkpointing=True)
    trainer.fit(toys.pretrainer(), DataLoader(toys.Noise(16), batch_size=8), ckpt_path=ckpt_path, weights_only=True)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_trainer_writes_whole_files_and_reads_no_damaged_one(tmp_path, monkeypatch):
    left = tmp_path / ".last.ckpt.tmp"  # of a process that was killed
    left.touch()
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    fit(tmp_path)
    path = tmp_path / "last.ckpt"
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert len(flushed) >= 2  # the file and its folder
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == 4
    fit(tmp_path, path)
    content = bytearray(path.read_bytes())
    weight = saved["state_dict"]["student.backbone.patch_embed.proj.weight"]
    content[content.index(weight.numpy().tobytes()) + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last.ckpt cannot be .*: it is damaged: archive/data/\d+ is not what was"):
        fit(tmp_path, path)


def test_a_full_disk_keeps_the_last_good_file_and_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    WholeCheckpoints().save_checkpoint({"a": torch.ones(3)}, path)
    opened = Path.open

    class Full:
        """A file on a disk without space."""

        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(self.file, name)

    def full(self, mode="r"):
        file = opened(self, mode)
        return Full(file) if mode == "wb" else file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
        WholeCheckpoints().save_checkpoint({"a": torch.zeros(10_000)}, path)
    monkeypatch.undo()
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(TypeError, match="no storage_options"):
        WholeCheckpoints().save_checkpoint({}, path, storage_options={})
