"""Look at a network and leave no trace: no graph is kept, modes and random generators are put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untracked() -> Iterator[None]:
    """No gradients, and no inference mode either.

    Lightning evaluates in inference mode. A network that keeps a tensor made there (a mask, say) for its next call
    could never be trained again: "Inference tensors cannot be saved for backward".
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def same_random_state() -> Iterator[None]:
    """Put the random generators of torch (CPU and every initialised GPU), numpy and Python back afterwards."""
    states = (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002, others may use it
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Put `module` in eval mode; afterwards give each of its submodules the mode that it had.

    Each submodule has a mode of its own: ``module.train()`` would also put a frozen part, which was in eval mode, in
    train mode. Random generators are put back too, so that training goes on as if nobody had looked.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with same_random_state(), untracked():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
