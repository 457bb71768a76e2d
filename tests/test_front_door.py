"""``import esvit_pl`` is cheap, changes nothing, and offers what it names."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import esvit_pl

HEAVY = {"torch", "torchvision", "timm", "pytorch_lightning", "numpy", "PIL", "matplotlib", "hydra", "omegaconf"}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_loads_nothing_heavy_and_changes_nothing():
    out = python(
        "import logging, os, sys, warnings\n"
        "before = dict(os.environ), list(logging.root.handlers), list(warnings.filters)\n"
        "import esvit_pl\n"
        "assert (dict(os.environ), list(logging.root.handlers), list(warnings.filters)) == before\n"
        "print(*sys.modules)"
    )
    assert HEAVY & set(out.split()) == set()


@pytest.mark.parametrize("name", sorted({*esvit_pl.__all__} - {"__version__"}))
def test_every_name_leads_to_the_same_thing_as_its_room(name):
    thing = getattr(esvit_pl, name)
    assert thing is getattr(import_module(esvit_pl._HOMES[name]), name)
    assert vars(esvit_pl)[name] is thing  # kept: the second access costs nothing


def test_rooms_answer_by_name_and_a_star_does_not_bring_them():
    assert esvit_pl.backbones is import_module("esvit_pl.backbones")
    assert {"backbones", "visualize", "Pretrainer", "__version__"} < set(dir(esvit_pl))
    assert {"Pretrainer", "__version__"} < set(esvit_pl.__all__)
    assert "backbones" not in esvit_pl.__all__


@pytest.mark.slow
def test_type_checkers_know_the_names(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "guest.py").write_text(
        "import esvit_pl\n\nreveal_type(esvit_pl.build)\nreveal_type(esvit_pl.losses)\nesvit_pl.Swim\n"
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--cache-dir=/dev/null", "guest.py"]
    environment = {**os.environ, "MYPYPATH": str(Path(str(esvit_pl.__file__)).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "-> esvit_pl.backbones.interface.Backbone" in done.stdout
    assert 'Module has no attribute "Swim"' in done.stdout
    assert "Found 1 error" in done.stdout


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'Swim'; it has .*Pretrainer"):
        esvit_pl.Swim  # noqa: B018


def test_importing_every_room_changes_nothing_beyond_what_the_libraries_below_do():
    python(
        "import logging, os\n"
        "import torch, torchvision, timm, torchmetrics, pytorch_lightning\n"
        "from omegaconf.basecontainer import BaseContainer\n"
        "def state():\n"
        "    return dict(os.environ), list(logging.root.handlers), set(BaseContainer._resolvers)\n"
        "before = state()\n"
        "import esvit_pl\n"
        "for name in dir(esvit_pl):\n"
        "    getattr(esvit_pl, name)\n"
        "assert state() == before"
    )
