"""Annotations read from sources agree with what Python itself says of the imported targets."""

from __future__ import annotations

import sys

import pytest

from esvit_pl.configs import signatures
from esvit_pl.configs.signatures import signature


@pytest.mark.parametrize(
    ("target", "name", "kinds", "items", "options"),
    [
        ("esvit_pl.optim.OptimizerRecipe", "lr", {"float"}, None, ()),  # a dataclass
        ("esvit_pl.optim.OptimizerRecipe", "betas", {"list"}, {"float"}, ()),
        ("esvit_pl.optim.OptimizerRecipe", "name", set(), None, ("adamw", "sgd", "lars")),
        ("esvit_pl.optim.OptimizerRecipe", "fused", {"bool", "none"}, None, ()),
        ("esvit_pl.data.ImageDataModule", "num_workers", {"int", "none"}, None, ()),
        ("esvit_pl.evaluation.KNN", "k", {"int", "list"}, {"int"}, ()),
        ("esvit_pl.datasets.folder", "root", {"str"}, None, ()),  # a function
        ("esvit_pl.callbacks.CollapseMonitor", "thresholds", {"dict", "none"}, None, ()),
        ("esvit_pl.modules.Pretrainer", "backbone", {"any"}, None, ()),
        ("pytorch_lightning.Trainer", "devices", {"int", "list", "str"}, {"int"}, ()),
        ("pytorch_lightning.Trainer", "max_epochs", {"int", "none"}, None, ()),
    ],
)
def test_what_an_argument_may_be(target, name, kinds, items, options):
    found = signature(target).arguments[name]
    assert found.names == kinds
    assert (found.items and found.items.names) == items
    assert found.options == options


def test_an_annotation_that_is_named_elsewhere_is_followed_there():
    assert {"bf16-mixed", "32-true", 16} <= set(signature("pytorch_lightning.Trainer").arguments["precision"].options)


def test_a_foreign_package_is_read_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "foreign_parts"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\nfrom .inner.loss import Loss as MyLoss")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "base.py").write_text("class Base:\n    def __init__(self, width: 'int | None', **more): ...")
    (package / "inner" / "loss.py").write_text(
        "if True:\n    from .base import Base\n_Way = int | str\nclass Loss(Base):\n    pass\n"
        "def make(way: _Way, size: Unknown, *, flag: bool = True): ..."
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = signature("foreign_parts.MyLoss")
    assert (found.name, set(found.arguments), found.is_open) == ("Loss", {"width"}, True)
    assert found.arguments["width"].names == {"int", "none"}
    made = signature("foreign_parts.inner.loss.make")
    assert [sorted(made.arguments[name].names) for name in ("way", "size", "flag")] == [
        ["int", "str"],
        ["any"],
        ["bool"],
    ]
    assert "foreign_parts" not in sys.modules


def test_what_has_no_source_is_unknown():
    assert signature("no_such_package.Thing") is signature("math.sqrt") is signature("esvit_pl.optim.NoSuch") is None
    assert not signatures.of_default(None).known
