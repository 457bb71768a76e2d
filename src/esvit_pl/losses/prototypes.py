"""Cross entropies over prototypes, without pairwise logits and without all logits at once.

With W the student's prototypes, z a projection, t a temperature and q a teacher's distribution,

    CE(q, softmax(W z / t)) = logsumexp(W z / t) - u . z / t        with u = W^T q,

so a student row needs its log partition once and a teacher row its expected prototype once, whatever the number of
pairs that match them; a pair costs one product of two p-vectors. Both run over blocks of prototypes with a running
maximum, as attention does that never holds its scores (FlashAttention, arXiv 2205.14135): the teacher's row is the
query, W_teacher are the keys, W the values and -center the bias. Backward makes each block of logits again, so that
what a row keeps does not depend on k.
"""

# b rows | p projection width | k prototypes, j those of a block

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esvit_pl.precision import wide

CPU_BLOCK_BYTES = 2**23
"""Size of a block of logits on a CPU: it passes through the cache, and a product of matrices is still a large one."""
GPU_BLOCK_BYTES = 2**28
"""The same elsewhere: few launches, and small beside what the backbone keeps."""


class Target(NamedTuple):
    """What a teacher row asks of the student."""

    u: Tensor
    """(... p): the student's prototypes averaged under the teacher's distribution; carries gradient to them alone."""
    entropy: Tensor
    """(...): entropy of the teacher's distribution in nats, no gradient."""


def log_partition(z: Tensor, prototypes: Tensor, temp: float, *, block_bytes: int | None = None) -> Tensor:
    """logsumexp over prototypes of W z / temp.

    Computed in float32 or wider, also under autocast; one block of logits at a time, forward and backward.

    Args:
        z: (... p) student projections.
        prototypes: (k p), W.
        temp: student temperature.
        block_bytes: size of a block of logits; None is `CPU_BLOCK_BYTES` or `GPU_BLOCK_BYTES`.

    Returns:
        (...), with gradient to `z` and `prototypes`.

    Raises:
        ValueError: `block_bytes` is not positive.
    """
    rows = wide(z).flatten(0, -2)
    result: Tensor = _LogPartition.apply(rows, wide(prototypes), temp, _bytes(rows, block_bytes))
    return result.view(z.shape[:-1])


def expected_prototype(
    teacher_z: Tensor,
    teacher_prototypes: Tensor,
    center: Tensor,
    prototypes: Tensor,
    temp: float,
    *,
    block_bytes: int | None = None,
) -> Target:
    """u = W^T q with q = softmax((W_teacher teacher_z - center) / temp): attention of a teacher row over prototypes.

    Computed in float32 or wider, also under autocast; two blocks of logits at a time, one in backward.

    Args:
        teacher_z: (... p) teacher projections.
        teacher_prototypes: (k p), W_teacher.
        center: (k,), subtracted from the teacher's logits (`losses.center`).
        prototypes: (k p), the student's W; gradient flows to it through u, q is detached.
        temp: teacher temperature.
        block_bytes: size of a block of logits; None is `CPU_BLOCK_BYTES` or `GPU_BLOCK_BYTES`.

    Raises:
        ValueError: `block_bytes` is not positive.
    """
    rows, keys, center = (wide(x.detach()) for x in (teacher_z.flatten(0, -2), teacher_prototypes, center))
    u, entropy = _ExpectedPrototype.apply(rows, keys, center, wide(prototypes), temp, _bytes(rows, block_bytes))
    return Target(u.view(teacher_z.shape), entropy.view(teacher_z.shape[:-1]))


class _LogPartition(torch.autograd.Function):
    """z (b p), W (k p) -> (b,)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, prototypes: Tensor, temp: float, block_bytes: int) -> Tensor:
        ctx.temp, ctx.block_bytes = temp, block_bytes
        with _no_autocast(z):
            scaled, sums = z / temp, _Sums(z)
            for part, space in _blocks(z, prototypes, block_bytes):
                sums.add(torch.mm(prototypes[part], scaled.mT, out=space))  # (j b)
        ctx.save_for_backward(scaled, prototypes, sums.log_partition)
        return sums.log_partition

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled, prototypes, log_partition = ctx.saved_tensors
        to_z, to_w = ctx.needs_input_grad[:2]
        grad_z = torch.zeros_like(scaled) if to_z else None
        grad_w = torch.empty_like(prototypes) if to_w else None
        with _no_autocast(scaled):
            weighted = scaled * grad[:, None]
            for part, space in _blocks(scaled, prototypes, ctx.block_bytes):
                p = torch.mm(prototypes[part], scaled.mT, out=space).sub_(log_partition).exp_()  # (j b)
                if grad_z is not None:
                    grad_z.addmm_(p.mT, prototypes[part])
                if grad_w is not None:
                    torch.mm(p, weighted, out=grad_w[part])
        if grad_z is not None:
            grad_z.mul_(grad[:, None] / ctx.temp)
        return grad_z, grad_w, None, None


class _ExpectedPrototype(torch.autograd.Function):
    """z (b p), W_teacher (k p), center (k,), W (k p) -> u (b p), entropy (b,)."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, keys: Tensor, center: Tensor, prototypes: Tensor, temp: float, block_bytes: int
    ) -> tuple[Tensor, Tensor]:
        ctx.block_bytes = block_bytes
        with _no_autocast(z):
            scaled, bias, sums = z / temp, (center / -temp)[:, None], _Sums(z)
            u, surprise = torch.zeros_like(z), torch.zeros_like(z[:, 0])  # sums of e W and e log e, e of `_Sums`
            for part, space in _blocks(z, keys, block_bytes):
                before = sums.total
                logits = torch.addmm(bias[part], keys[part], scaled.mT, out=space)  # (j b)
                shift, e = sums.add(logits)
                u.mul_(shift.exp()[:, None]).addmm_(e.mT, prototypes[part])
                surprise = (surprise + shift * before) * shift.exp() + torch.xlogy(e, e).sum(0)
        ctx.save_for_backward(scaled, keys, bias, sums.log_partition)
        entropy = sums.total.log() - surprise / sums.total
        ctx.mark_non_differentiable(entropy)
        return u.div_(sums.total[:, None]), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled, keys, bias, log_partition = ctx.saved_tensors
        grad_w = torch.empty_like(keys)
        with _no_autocast(scaled):
            for part, space in _blocks(scaled, keys, ctx.block_bytes):
                q = torch.addmm(bias[part], keys[part], scaled.mT, out=space).sub_(log_partition).exp_()  # (j b)
                torch.mm(q, grad, out=grad_w[part])
        return None, None, None, grad_w, None, None


class _Sums:
    """Over the blocks so far, for each row: the largest logit, and the sum of e = exp(logit - largest)."""

    def __init__(self, rows: Tensor) -> None:
        # The lowest finite number, since -inf - -inf is nan.
        self.largest = torch.full_like(rows[:, 0], torch.finfo(rows.dtype).min)
        self.total = torch.zeros_like(self.largest)

    def add(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a block (j b). Returns (b,) old - new largest, and e (j b) in the place of the logits.

        What was summed before must be multiplied by the exponential of that difference.
        """
        largest = torch.maximum(self.largest, logits.amax(0))
        shift, self.largest = self.largest - largest, largest
        e = logits.sub_(largest).exp_()
        self.total = self.total * shift.exp() + e.sum(0)
        return shift, e

    @property
    def log_partition(self) -> Tensor:
        return self.largest + self.total.log()


def _blocks(rows: Tensor, prototypes: Tensor, block_bytes: int) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive parts of the prototypes, each with a place (j b) for its logits: the same memory again and again."""
    size = max(1, block_bytes // (rows.element_size() * max(1, len(rows))))
    size = min(size, len(prototypes))
    space = rows.new_empty(size, len(rows))
    for start in range(0, len(prototypes), size):
        part = slice(start, min(start + size, len(prototypes)))
        yield part, space[: part.stop - part.start]


def _bytes(rows: Tensor, block_bytes: int | None) -> int:
    if block_bytes is None:
        return CPU_BLOCK_BYTES if rows.device.type == "cpu" else GPU_BLOCK_BYTES
    if block_bytes <= 0:
        raise ValueError(
            f"block_bytes must be positive, got {block_bytes}; it is the size of a block of logits, None chooses one"
        )
    return block_bytes


def _no_autocast(x: Tensor) -> torch.autocast:
    """Backward needs it too: it may run inside an autocast region."""
    return torch.autocast(x.device.type, enabled=False)
