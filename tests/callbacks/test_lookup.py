from __future__ import annotations

import pytest
from torch import nn

from esvit_pl.callbacks.lookup import find_part, named_parts


def test_find_part() -> None:
    module = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(2, 2)})})
    assert find_part("X", module, "a.b") is module["a"]["b"]
    assert find_part("X", module, len) is len
    with pytest.raises(ValueError, match="X looks for features='a.c', and ModuleDict.a has no attribute 'c'; it has b"):
        find_part("X", module, "a.c")


def test_named_parts() -> None:
    assert named_parts("X", "a.b") == {None: "a.b"}
    assert named_parts("X", {"one": "a", "two": len}) == {"one": "a", "two": len}
    with pytest.raises(ValueError, match="X needs one feature or more, got an empty dict"):
        named_parts("X", {})
