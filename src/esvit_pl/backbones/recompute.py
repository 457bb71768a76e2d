"""Activation checkpointing: backward computes the inside of a block again, so that forward need not keep it.

It changes nothing: losses, gradients, buffers and random numbers are the same to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

LENT = "_buffers_during_recomputation"


class Recomputable(nn.Module):
    """A block that keeps only its inputs for backward, once `Backbone.set_grad_checkpointing` has been called.

    Without a backward to come (in evaluation, or under ``no_grad``) it is an ordinary module.

    >>> class Block(Recomputable):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = nn.Linear(4, 4)
    ...     def forward(self, x):
    ...         return x + self.linear(x).relu()
    >>> block = Block()
    >>> block.grad_checkpointing = True
    >>> block(torch.ones(2, 4)).sum().backward()  # computes self.linear(x).relu() a second time
    """

    grad_checkpointing = False

    def __call__(self, *inputs: Any) -> Any:
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            return super().__call__(*inputs)
        hold_statistics(self)
        return checkpoint(super().__call__, *inputs, use_reentrant=False)


def hold_statistics(model: nn.Module) -> None:
    """Make batch norms count each batch once, in forward, and not a second time when backward computes it again.

    Call it before each forward, because ``sync_batchnorm`` may have replaced the norms since the last one.
    """
    if torch.compiler.is_compiling():  # a compiled graph writes each buffer only once
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm) and _lend_copies not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_lend_copies)
            module.register_forward_hook(_take_back, always_call=True)  # a recomputation may stop inside the norm


def _lend_copies(norm: nn.Module, inputs: Any) -> None:
    """Give the second forward pass copies of the running statistics, which it may overwrite.

    Without any statistics autograd would save fewer tensors than in the first pass, and torch would raise an error.
    """
    if _in_backward():
        norm.__dict__[LENT] = dict(norm.named_buffers(recurse=False))
        for name, buffer in norm.__dict__[LENT].items():
            setattr(norm, name, buffer.clone())


def _take_back(norm: nn.Module, inputs: Any, output: Any) -> None:
    """Put the running statistics back in the place of the copies."""
    if _in_backward():
        for name, buffer in norm.__dict__.pop(LENT).items():
            setattr(norm, name, buffer)


def _in_backward() -> bool:
    # A private function of torch, used here only. A context manager of ours would miss timm's calls.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
