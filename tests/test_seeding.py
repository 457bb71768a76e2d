from __future__ import annotations

import torch

from esvit_pl.seeding import derive_seed, seed_everything_for


def test_a_seed_is_the_same_on_every_machine():
    assert derive_seed("step", 0, 1) == derive_seed("step", 0, 1)
    assert derive_seed(0, 11) != derive_seed(0, 1, 1)
    assert 0 <= derive_seed(1) < 2**63
    assert derive_seed(0) == 4246866556266386882


def test_torch_draws_what_the_parts_say():
    draws = []
    for parts in ((0, 5, 0), (0, 5, 1), (0, 5, 0)):
        seed_everything_for(*parts)
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[2] != draws[1]
