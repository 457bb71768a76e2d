"""Cross entropies over prototypes that never hold the logits of all prototypes, and none of pairs of rows.

With the student's prototypes W, a projection z, a temperature t and a teacher's distribution q,

    CE(q, softmax(W z / t)) = logsumexp(W z / t) - u . z / t        where u = W^T q.

So each student row needs its log partition once, and each teacher row its expected prototype u once, however many pairs
they are in; a pair then costs a single product of two p-vectors. Both are computed over blocks of prototypes with a
running maximum, like attention that never stores its scores (FlashAttention, arXiv 2205.14135): the teacher's row is
the query, W_teacher are the keys, W the values, and -center is the bias. Backward computes each block of logits again,
so that the memory for a row does not grow with k. On a GPU under bfloat16 autocast both passes run as kernels
(`losses.kernels`).
"""

# b student rows | c teacher rows | p projection width | k prototypes, j those of a block

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esvit_pl.precision import factors, wide

CPU_BLOCK_BYTES = 2**23
"""Size of a block of logits on a CPU: small enough for the cache, large enough for efficient matrix products."""
GPU_BLOCK_BYTES = 2**28
"""The same on other devices: few kernel launches, and little memory compared with the backbone's activations."""


class Target(NamedTuple):
    """What the student learns from a teacher row."""

    u: Tensor
    """(... p): mean of the student's prototypes under the teacher's distribution; only they get gradient."""
    entropy: Tensor
    """(...): entropy of the teacher's distribution in nats, no gradient."""


def partition_and_target(
    z: Tensor,
    prototypes: Tensor,
    temp: float,
    teacher_z: Tensor,
    teacher_prototypes: Tensor,
    center: Tensor,
    teacher_temp: float,
    *,
    block_bytes: int | None = None,
) -> tuple[Tensor, Target]:
    """logsumexp(W z / temp) of the student's rows; and for the teacher's u = W^T q, where
    q = softmax((W_teacher teacher_z - center) / teacher_temp).

    Both are computed together, so that there is one gradient of W instead of two.

    Everything is computed in float32 or wider, whatever autocast says; forward and backward hold one block of logits at
    a time. Only on a GPU under bfloat16 autocast, kernels that hold no block at all multiply in bfloat16 and sum in
    float32.

    Args:
        z: (... p) student projections.
        prototypes: (k p), W; gradient flows to it through both results.
        temp: student temperature.
        teacher_z: (... p) teacher projections; no gradient flows to the teacher, neither through u nor through q.
        teacher_prototypes: (k p), W_teacher.
        center: (k,), subtracted from the teacher's logits (`losses.center`).
        teacher_temp: teacher temperature.
        block_bytes: size of a block of logits, and no kernels are used. None: `CPU_BLOCK_BYTES` or `GPU_BLOCK_BYTES`.

    Returns:
        Log partitions (...) in float32 or wider, and the target.

    Raises:
        ValueError: `block_bytes` is not positive.
    """
    student, teacher = wide(z).flatten(0, -2), wide(teacher_z.detach()).flatten(0, -2)
    partition, u, entropy = _Stream.apply(
        _Kernels() if block_bytes is None and _kernels_take(student) else _Blocks(_block_bytes(z, block_bytes)),
        student,
        wide(prototypes),
        temp,
        teacher,
        wide(teacher_prototypes.detach()),
        wide(center.detach()),
        teacher_temp,
    )
    shape = teacher_z.shape
    return partition.view(z.shape[:-1]), Target(u.view(shape), entropy.view(shape[:-1]))


class _Given(NamedTuple):
    """The inputs of both passes, divided by their temperatures."""

    z: Tensor
    """(b p)"""
    prototypes: Tensor
    """(k p)"""
    teacher_z: Tensor
    """(c p)"""
    teacher_prototypes: Tensor
    """(k p)"""
    bias: Tensor
    """(k,), -center."""


class _Stream(torch.autograd.Function):
    """-> log partitions (b,), u (c p), entropy (c,), computed by `_Blocks` or `_Kernels`.

    Forward also computes the expected prototype of each student row: divided by temp it is the gradient of the row's
    log partition.
    """

    @staticmethod
    def forward(
        ctx: Any,
        way: _Blocks | _Kernels,
        z: Tensor,
        prototypes: Tensor,
        temp: float,
        teacher_z: Tensor,
        teacher_prototypes: Tensor,
        center: Tensor,
        teacher_temp: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        scaled = z / temp, prototypes, teacher_z / teacher_temp, teacher_prototypes, center / -teacher_temp
        with _no_autocast(z):
            given = way.prepare(_Given(*scaled))
            log_partition, expected, u, entropy = way.attend(given, student=ctx.needs_input_grad[1])
        ctx.way, ctx.temp = way, temp
        ctx.save_for_backward(*given, log_partition, expected)
        ctx.mark_non_differentiable(entropy)
        return log_partition[: len(z)].clone(), u, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_u: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *given, log_partition, expected = ctx.saved_tensors
        _, to_z, to_w, *_ = ctx.needs_input_grad
        grad_z = expected * (grad / ctx.temp)[:, None] if to_z else None
        with _no_autocast(grad):
            grad_w = ctx.way.gradient(_Given(*given), log_partition, grad, grad_u) if to_w else None
        return None, grad_z, grad_w, *[None] * 5


class _Blocks:
    """Computes one block of prototypes after the other, each for student and teacher rows together.

    Args:
        block_bytes: memory for the logits of a block.
    """

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes

    def prepare(self, given: _Given) -> _Given:
        return given

    def attend(self, given: _Given, *, student: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log partitions (b+c,), expected prototypes of the student (b p, or no row without `student`) and of the
        teacher (c p), and the teacher's entropies (c,)."""
        z, prototypes, teacher_z, *_ = given
        b = len(z)
        asked = slice(0 if student else b, None)
        largest = z.new_full((b + len(teacher_z),), torch.finfo(z.dtype).min)  # not -inf: -inf - -inf is nan
        total = torch.zeros_like(largest)  # of e = exp(logit - largest)
        expected = z.new_zeros(len(largest[asked]), z.shape[-1])  # sums of e W
        e_log_e = torch.zeros_like(teacher_z[:, 0])  # sums of e log e
        for part, logits in self._logits(given):
            before, largest = largest, torch.maximum(largest, logits.amax(0))
            log_e = logits.sub_(largest)[:, b:].clone()  # (j c)
            e = logits.exp_()  # (j b+c)
            # Relative to the new largest logit the sums so far shrink, and the logarithms in them decrease.
            down = largest - before
            shrink = (-down).exp()
            e_log_e -= down[b:] * total[b:]
            total.mul_(shrink).add_(e.sum(0))
            e_log_e.mul_(shrink[b:]).add_(log_e.mul_(e[:, b:]).sum(0))
            expected.mul_(shrink[asked, None]).addmm_(e[:, asked].mT, prototypes[part])
        expected /= total[asked, None]
        entropy = total[b:].log() - e_log_e / total[b:]
        of_student = b - asked.start
        return largest + total.log(), expected[:of_student], expected[of_student:].clone(), entropy

    def gradient(self, given: _Given, log_partition: Tensor, grad: Tensor, grad_u: Tensor) -> Tensor:
        """The gradient of the prototypes (k p), from those of the log partitions (b,) and of u (c p)."""
        right = torch.cat([given.z * grad[:, None], grad_u])  # (b+c p)
        to = torch.empty_like(given.prototypes)
        for part, logits in self._logits(given):
            torch.mm(logits.sub_(log_partition).exp_(), right, out=to[part])
        return to

    def _logits(self, given: _Given) -> Iterator[tuple[slice, Tensor]]:
        """Slices of prototypes and their logits (j b+c); each block of logits overwrites the one before."""
        z, prototypes, teacher_z, teacher_prototypes, bias = given
        rows = len(z) + len(teacher_z)
        size = min(max(1, self.block_bytes // (z.element_size() * max(1, rows))), len(prototypes))
        space = z.new_empty(size, rows)
        for start in range(0, len(prototypes), size):
            part = slice(start, min(start + size, len(prototypes)))
            logits = space[: part.stop - part.start]
            torch.mm(prototypes[part], z.mT, out=logits[:, : len(z)])
            torch.addmm(bias[part, None], teacher_prototypes[part], teacher_z.mT, out=logits[:, len(z) :])
            yield part, logits


class _Kernels:
    """The same as `_Blocks`, but with kernels that need no block in memory."""

    factors = torch.bfloat16

    def prepare(self, given: _Given) -> _Given:
        return _Given(*(x if x is given.bias else x.to(self.factors).contiguous() for x in given))

    def attend(self, given: _Given, *, student: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from esvit_pl.losses.kernels import attend

        z, prototypes, teacher_z, teacher_prototypes, bias = given
        partition, expected, _ = attend(z, prototypes, prototypes if student else None, None)
        teacher_partition, u, entropy = attend(teacher_z, teacher_prototypes, prototypes, bias)
        return torch.cat([partition, teacher_partition]), expected, u, entropy

    def gradient(self, given: _Given, log_partition: Tensor, grad: Tensor, grad_u: Tensor) -> Tensor:
        from esvit_pl.losses.kernels import add_gradient_

        z, prototypes, teacher_z, teacher_prototypes, bias = given
        partition, teacher_partition = log_partition.split([len(z), len(teacher_z)])
        to = torch.zeros_like(prototypes, dtype=grad.dtype)
        add_gradient_(to, z, prototypes, None, partition, grad.contiguous(), z)
        grad_u = grad_u.to(self.factors).contiguous()
        add_gradient_(to, teacher_z, teacher_prototypes, bias, teacher_partition, None, grad_u)
        return to


def _block_bytes(z: Tensor, asked: int | None) -> int:
    if asked is None:
        return CPU_BLOCK_BYTES if z.device.type == "cpu" else GPU_BLOCK_BYTES
    if asked <= 0:
        raise ValueError(
            f"block_bytes must be positive, got {asked}; it is the size of a block of logits, None chooses one"
        )
    return asked


def _kernels_take(rows: Tensor) -> bool:
    if not rows.is_cuda or rows.dtype is not torch.float32 or factors("cuda") is not _Kernels.factors:
        return False
    try:
        from esvit_pl.losses.kernels import can_run
    except ImportError:  # some builds of torch come without Triton
        return False
    return can_run(rows)


def _no_autocast(x: Tensor) -> torch.autocast:
    """Also used in backward, which may run inside an autocast region."""
    return torch.autocast(x.device.type, enabled=False)
