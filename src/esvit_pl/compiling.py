"""``torch.compile`` of a network in place: names of parameters, copies and checkpoints stay as they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

RANDOM = {"fallback_random": True}
"""Draw what the uncompiled network draws: seeds mean the same, and stochastic depth drops the same images."""


def compile_(networks: Iterable[nn.Module], device: torch.device | str) -> None:
    """Compile what ``network(...)`` does, at its first call, for the sizes that it is called with.

    A network's parts stay as they are when they are called by themselves: an evaluation of ``network.backbone``, in
    batches of other sizes, compiles nothing.

    Args:
        device: of the tensors to come.

    Raises:
        ValueError: compiled code cannot be made for the device.
    """
    check_compiler(device)
    for network in networks:
        network.compile(dynamic=False, options=RANDOM)


def check_compiler(device: torch.device | str) -> None:
    """Compile a sum, to test that torch finds what it needs: a C++ compiler, and Triton on GPUs.

    Raises:
        ValueError: with the message of torch.compile.
    """
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(1, device=device))
    except Exception as error:  # of Dynamo, of Inductor, of a compiler's process
        said = f"{type(error).__name__}: {error}".strip().splitlines()
        raise ValueError(
            f"module.compile=true needs a working compiler for {torch.device(device).type}, and torch.compile ends "
            f"with {' '.join(said[:3])}; install a C++ compiler (g++ or clang++, environment variable CXX), on GPUs "
            "Triton too, or set module.compile=false"
        ) from error
