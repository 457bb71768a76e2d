"""Activation checkpointing: what is inside a block is computed again in backward instead of being kept until then.

Exact: losses, gradients and buffers are those without it, to the last bit, random numbers included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

LENT = "_buffers_during_recomputation"


class Recomputable(nn.Module):
    """A block that forgets its inside and keeps its inputs, if `Backbone.set_grad_checkpointing` says so.

    Only where there will be a backward: not in evaluation, not without gradients.
    """

    grad_checkpointing = False

    def __call__(self, *inputs: Any) -> Any:
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            return super().__call__(*inputs)
        hold_statistics(self)
        return checkpoint(super().__call__, *inputs, use_reentrant=False)


def hold_statistics(model: nn.Module) -> None:
    """Let batch norms take up each batch once, in forward, and not a second time when backward computes it again.

    Call it before each forward: norms may have been replaced since the last one (``sync_batchnorm``).
    """
    if torch.compiler.is_compiling():  # a compiled graph writes each buffer once
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm) and _lend_copies not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_lend_copies)
            module.register_forward_hook(_take_back, always_call=True)  # a recomputation may stop inside the norm


def _lend_copies(norm: nn.Module, inputs: Any) -> None:
    """Of the statistics, for backward to write on. (Without any, autograd would keep fewer tensors than in forward.)"""
    if _in_backward():
        norm.__dict__[LENT] = dict(norm.named_buffers(recurse=False))
        for name, buffer in norm.__dict__[LENT].items():
            setattr(norm, name, buffer.clone())


def _take_back(norm: nn.Module, inputs: Any, output: Any) -> None:
    if _in_backward():
        for name, buffer in norm.__dict__.pop(LENT).items():
            setattr(norm, name, buffer)


def _in_backward() -> bool:
    # Private, and the one place that knows: timm calls `checkpoint` itself, without a context of ours.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
