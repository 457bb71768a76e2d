from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from esvit_pl.distributed import (
    dealt_in_turn,
    gather_in_turn,
    gather_over_ranks,
    mean_over_ranks,
    num_ranks,
    rank,
    return_to_ranks,
    sum_over_ranks,
)


def test_on_one_process_each_is_the_identity():
    x = torch.randn(3, 2)
    assert sum_over_ranks(x) is x
    assert gather_over_ranks(x) is x
    assert gather_in_turn(x) is x
    assert torch.equal(return_to_ranks(x, [3]), x[None])
    assert torch.equal(mean_over_ranks(x), x)
    assert (num_ranks(), rank()) == (1, 0)


def work(r: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=r, world_size=2)
    x = torch.tensor([[1.0, 2.0]]) * (r + 1)
    assert sum_over_ranks(x).tolist() == [[3.0, 6.0]]
    assert mean_over_ranks(x).tolist() == [[1.5, 3.0]]
    assert gather_over_ranks(x).tolist() == [[1.0, 2.0], [2.0, 4.0]]
    answers = torch.tensor([[10.0 * r], [10.0 * r + 1], [10.0 * r + 2]])  # to one row of rank 0 and two of rank 1
    assert return_to_ranks(answers, [1, 2]).tolist() == ([[[0]], [[10]]] if r == 0 else [[[1], [2]], [[11], [12]]])
    assert return_to_ranks(answers, [3, 0]).shape == ((2, 3, 1) if r == 0 else (2, 0, 1))
    assert x.tolist() == [[1.0 * (r + 1), 2.0 * (r + 1)]]  # the argument stays as it is
    assert (num_ranks(), rank()) == (2, r)
    assert dealt_in_turn(5) == [0, 2, 4, 1, 3]
    assert gather_in_turn(torch.arange(r, 5, 2)).tolist() == [0, 1, 2, 3, 4]
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not built in")
def test_on_two_processes():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(work, (port,), nprocs=2)
