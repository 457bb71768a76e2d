"""Warnings of this package are lines for people, and stand in the run's log; those of others stay as they are."""

from __future__ import annotations

import logging
import warnings

import pytest

from esvit_pl import printing
from esvit_pl.datasets.decode import UnreadableMetadata


@pytest.fixture
def log(tmp_path):
    handler = logging.FileHandler(tmp_path / "pretrain.log")
    logging.getLogger().addHandler(handler)
    yield tmp_path / "pretrain.log"
    logging.getLogger().removeHandler(handler)
    handler.close()


def test_a_warning_of_ours_is_a_line_of_terminal_and_log(log):
    elsewhere = "/elsewhere/loader.py"
    with printing.warnings_as_lines():
        said = [
            warnings.formatwarning("k-NN falls, look\x1b[2J", UserWarning, printing.__file__, 7),
            warnings.formatwarning("no EXIF", UnreadableMetadata, elsewhere, 7),
            warnings.formatwarning("theirs", UserWarning, elsewhere, 7),
        ]
    assert said[:2] == ["warning: k-NN falls, look\\x1b[2J\n", "warning: no EXIF\n"]
    assert said[2].startswith("/elsewhere/loader.py:7: UserWarning: theirs")
    assert log.read_text() == "".join(said[:2])


def test_outside_of_a_command_warnings_are_python_s_own(capsys):
    before = warnings.formatwarning
    with printing.warnings_as_lines():
        assert warnings.formatwarning is not before
    assert warnings.formatwarning is before
