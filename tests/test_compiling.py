from __future__ import annotations

import pytest
import torch
from torch import nn

from esvit_pl.compiling import RANDOM, check_compiler, compile_


def test_without_a_compiler_it_says_what_is_missing_and_what_to_do():
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}),
        pytest.raises(ValueError, match=r"(?s)module\.compile=true.*no-such-compiler.*install a C\+\+ compiler"),
    ):
        check_compiler("cpu")
    torch._dynamo.reset()


def test_a_network_is_compiled_in_place_and_its_parts_are_not(monkeypatch):
    seen = []

    def compiled(function, **how):
        seen.append(how)
        return lambda *inputs: (function(*inputs), "compiled")

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr("esvit_pl.compiling.check_compiler", seen.append)
    network = nn.Sequential(nn.Linear(2, 2))
    names = list(network.state_dict())
    compile_([network], "cpu")
    assert network(torch.zeros(1, 2))[1] == "compiled"
    assert isinstance(network[0](torch.zeros(1, 2)), torch.Tensor)
    assert list(network.state_dict()) == names
    assert seen == ["cpu", {"dynamic": False, "options": RANDOM}]
