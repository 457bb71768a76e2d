"""``import esvit_pl`` is cheap, changes nothing, and offers what it names."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize("name", sorted(esvit_pl._NAMES))
def test_every_name_leads_to_the_same_thing_as_its_room(name):
    thing = getattr(esvit_pl, name)
    assert thing is getattr(import_module(esvit_pl._NAMES[name]), name)
    assert vars(esvit_pl)[name] is thing  # kept: the second access costs nothing


def test_rooms_answer_by_name():
    assert esvit_pl.backbones is import_module("esvit_pl.backbones")
    assert set(esvit_pl._ROOMS) < set(dir(esvit_pl))


def test_editors_are_told_the_same_names():
    source = Path(str(esvit_pl.__file__)).read_text()
    told = {name: room for room, name in re.findall(r"^    from (\S+) import (\w+) as \2$", source, re.MULTILINE)}
    assert told == esvit_pl._NAMES


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
