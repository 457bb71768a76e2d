from __future__ import annotations

import torch

from esvit_pl.seeding import derive_seed, numpy_generator, seed_torch


def test_a_seed_is_the_same_on_every_machine():
    assert derive_seed(0, 3, 7, 1) == 281286699589396565280140432909690075171
    assert derive_seed(0, 11) != derive_seed(0, 1, 1)
    assert 0 <= derive_seed(1) < 2**128


def test_equal_parts_draw_equal_numbers():
    draws = [numpy_generator(*parts).random(3).tolist() for parts in ((0, 5, 0), (0, 5, 1), (0, 5, 0))]
    assert draws[0] == draws[2] != draws[1]


def test_torch_draws_what_the_parts_say():
    draws = []
    for parts in ((0, 5, 0), (0, 5, 1), (0, 5, 0)):
        seed_torch(*parts)
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[2] != draws[1]
