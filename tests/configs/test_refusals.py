"""Errors of the operating system, of OmegaConf and of YAML, in plain words."""

from __future__ import annotations

import errno
import os

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esvit_pl.configs import refusals


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (
            errno.ENOSPC,
            "runs/a.ckpt: the disk is full; free some of it, or write somewhere else with out=FOLDER, or for",
        ),
        (errno.EDQUOT, "runs/a.ckpt: your share of the disk is used up; free some of it, or write somewhere else with"),
        (
            errno.EFBIG,
            "runs/a.ckpt: the file would be larger than this process may write (ulimit -f); raise that limit",
        ),
        (errno.EROFS, "runs/a.ckpt: the file system is read-only; write somewhere else with out=FOLDER"),
        (
            errno.EACCES,
            "runs/a.ckpt: no permission; allow it (ls -ld shows whose it is), or, if it is an output, write",
        ),
        (errno.ENOENT, "runs/a.ckpt: there is no such file or folder"),
        (errno.ENOTDIR, "runs/a.ckpt: a part of this path is a file where a folder is wanted"),
        (errno.EISDIR, "runs/a.ckpt: this is a folder, and a file is wanted"),
        (errno.EMFILE, "runs/a.ckpt: too many files are open; raise the limit (ulimit -n 65535), or lower"),
    ],
)
def test_a_refused_file(number, sentence):
    error = OSError(number, os.strerror(number), "runs/a.ckpt")
    assert refusals.is_of_system(error)
    assert refusals.of_system(error).startswith(sentence)
    assert refusals.of_system(OSError(number, os.strerror(number))).startswith(
        sentence.removeprefix("runs/a.ckpt: ")[:20]
    )


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(OSError, match="File name too long") as caught:
        (tmp_path / ("x" * 256)).mkdir()
    said = f"'{'x' * 40}...' of 256 bytes is too long for a file name (255 bytes at most); give a shorter one"
    assert refusals.of_system(caught.value) == said


def test_other_errors_of_the_system_keep_their_traceback():
    assert not refusals.is_of_system(OSError(errno.ECONNREFUSED, "refused"))
    assert not refusals.is_of_system(ValueError())
    assert refusals.of_config(ValueError("something")) is None


def test_yaml_that_cannot_be_read_is_told_with_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("loss:\n\tview_weight: 1\n")
    with pytest.raises(yaml.YAMLError) as caught, path.open() as file:
        yaml.safe_load(file)
    said = refusals.of_config(caught.value)
    assert said.startswith(
        f"{path}, line 2, column 1: this is no YAML: found character '\\t' that cannot start any token"
    )
    assert said.endswith("YAML takes spaces, no tabs")


def test_a_setting_that_is_read_and_not_there():
    cfg = OmegaConf.create({"trainer": {}})
    OmegaConf.set_struct(cfg, True)
    with pytest.raises(OmegaConfBaseException) as caught:
        cfg.trainer.max_epochs  # noqa: B018
    said = "the config has no trainer.max_epochs, which the command reads; was it taken away with ~trainer.max_epochs?"
    assert refusals.of_config(caught.value) == said


def test_a_group_without_an_option_names_the_option_that_is_empty(commands, pictures):
    refused = commands.pretrain(pictures, "callbacks=[]")
    assert refused.code != 0
    assert refused.err.strip().endswith("was it taken away with ~callbacks? callbacks=none is how to have none")
