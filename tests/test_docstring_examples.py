"""Every public class has an example in its docstring, and every example does what it says."""

from __future__ import annotations

import doctest
import inspect
import signal
from importlib import import_module
from pathlib import Path

import pytest

import esvit_pl

SRC = Path(esvit_pl.__file__).parent
WITH_EXAMPLES = sorted(path for path in SRC.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
# Rooms whose public classes all have an example.
ROOMS = ("augment", "backbones", "callbacks", "checkpoints", "data", "datasets", "evaluation", "losses", "modules")
ROOMS += ("objectives", "optim", "pretraining")


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def examples(path: Path) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(import_module(module_of(path)))
    return [test for test in found if test.examples]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.relative_to(SRC).as_posix())
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated")  # Lightning 2.6 on torch 2.14
def test_examples_do_what_they_say(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for what an example writes
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Trainer that failed before has left its handler
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    for test in examples(path):
        runner.run(test, out=said.append)
    assert not runner.summarize(verbose=False).failed, "".join(said)
    assert runner.tries


def public_classes() -> list[type]:
    rooms = [import_module(f"esvit_pl.{room}") for room in ROOMS]
    names = [getattr(room, name) for room in rooms for name in getattr(room, "__all__", ["PretrainingStep"])]
    classes = dict.fromkeys(thing for thing in names if inspect.isclass(thing))
    return [thing for thing in classes if not issubclass(thing, (tuple, Exception))]


@pytest.mark.parametrize("public", public_classes(), ids=lambda public: public.__name__)
def test_every_public_class_has_an_example(public):
    assert ">>> " in (public.__doc__ or ""), f"{public.__module__}.{public.__name__} has no example in its docstring"
