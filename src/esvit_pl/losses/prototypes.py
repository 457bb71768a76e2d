"""Cross entropies over prototypes, without pairwise logits and without all logits at once.

With W the student's prototypes, z a projection, t a temperature and q a teacher's distribution,

    CE(q, softmax(W z / t)) = logsumexp(W z / t) - u . z / t        with u = W^T q,

so a student row needs its log partition once and a teacher row its expected prototype once, whatever the number of
pairs that match them; a pair costs one product of two p-vectors. Both run over blocks of prototypes with a running
maximum, as attention does that never holds its scores (FlashAttention, arXiv 2205.14135): a teacher's row is the query,
W_teacher are the keys, W the values and -center the bias. Backward makes each block of logits again, so that what is
kept for a row does not grow with k. With factors in bfloat16, a GPU runs both passes as kernels (`losses.kernels`).
"""

# b student rows | c teacher rows | p projection width | k prototypes, j those of a block

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
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

    Args:
        z: (... p) student projections.
        prototypes: (k p), W.
        temp: student temperature.
        block_bytes: as in `partition_and_target`.

    Returns:
        (...) in float32 or wider, with gradient to `z` and `prototypes`.
    """
    nobody, center = z.new_empty(0, z.shape[-1]), z.new_zeros(len(prototypes))
    return partition_and_target(z, prototypes, temp, nobody, prototypes, center, 1.0, block_bytes=block_bytes)[0]


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

    Args:
        teacher_z: (... p) teacher projections.
        teacher_prototypes: (k p), W_teacher.
        center: (k,), subtracted from the teacher's logits (`losses.center`).
        prototypes: (k p), the student's W; gradient flows to it through u, q is detached.
        temp: teacher temperature.
        block_bytes: as in `partition_and_target`.
    """
    nobody = teacher_z.new_empty(0, teacher_z.shape[-1])
    return partition_and_target(
        nobody, prototypes, 1.0, teacher_z, teacher_prototypes, center, temp, block_bytes=block_bytes
    )[1]


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
    factors: torch.dtype = torch.float32,
) -> tuple[Tensor, Target]:
    """`log_partition` and `expected_prototype` in one pass, which makes one gradient of W instead of two.

    Computed in float32 or wider, also under autocast; forward and backward hold one block of logits at a time.

    Args:
        z: (... p) student projections.
        prototypes: (k p), W; gradient flows to it through both results.
        temp: student temperature.
        teacher_z: (... p) teacher projections; nothing flows to the teacher.
        teacher_prototypes: (k p), W_teacher.
        center: (k,).
        teacher_temp: teacher temperature.
        block_bytes: size of a block of logits; None is `CPU_BLOCK_BYTES` or `GPU_BLOCK_BYTES`.
        factors: bfloat16 lets a GPU multiply matrices in it, with sums in float32, by kernels that hold no block at
            all; where they cannot run, everything is float32 nevertheless.

    Returns:
        Log partitions (...) and the target.

    Raises:
        ValueError: `block_bytes` is not positive.
    """
    student, teacher = wide(z).flatten(0, -2), wide(teacher_z.detach()).flatten(0, -2)
    given = (student, wide(prototypes), temp, teacher, wide(teacher_prototypes.detach()), wide(center.detach()))
    if factors is torch.bfloat16 and student.dtype is torch.float32 and _kernels_run(student):
        partition, u, entropy = _Kernels.apply(*given, teacher_temp)
    else:
        partition, u, entropy = _Stream.apply(*given, teacher_temp, _block_bytes(z, block_bytes))
    shape = teacher_z.shape
    return partition.view(z.shape[:-1]), Target(u.view(shape), entropy.view(shape[:-1]))


class _Stream(torch.autograd.Function):
    """-> log partitions (b,), u (c p), entropy (c,). Student and teacher rows lie side by side in each block.

    A student row's expected prototype is made, too: it is temp times the gradient of its log partition.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        prototypes: Tensor,
        temp: float,
        teacher_z: Tensor,
        teacher_prototypes: Tensor,
        center: Tensor,
        teacher_temp: float,
        block_bytes: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        b = len(z)
        asked = slice(0 if ctx.needs_input_grad[0] else b, None)  # rows whose expected prototype anyone wants
        with _no_autocast(z):
            blocks = _Blocks(
                z / temp, prototypes, teacher_z / teacher_temp, teacher_prototypes, center / -teacher_temp, block_bytes
            )
            largest = z.new_full((b + len(teacher_z),), torch.finfo(z.dtype).min)  # not -inf: -inf - -inf is nan
            total = torch.zeros_like(largest)  # of e = exp(logit - largest)
            expected = z.new_zeros(len(largest[asked]), z.shape[-1])  # sums of e W
            e_log_e = torch.zeros_like(teacher_z[:, 0])  # sums of e log e
            for part, logits in blocks:
                before, largest = largest, torch.maximum(largest, logits.amax(0))
                log_e = logits.sub_(largest)[:, b:].clone()  # (j c)
                e = logits.exp_()  # (j b+c)
                # Under the new largest, sums so far shrink, and logarithms in them go down by the difference.
                down = largest - before
                shrink = (-down).exp()
                e_log_e -= down[b:] * total[b:]
                total.mul_(shrink).add_(e.sum(0))
                e_log_e.mul_(shrink[b:]).add_(log_e.mul_(e[:, b:]).sum(0))
                expected.mul_(shrink[asked, None]).addmm_(e[:, asked].mT, prototypes[part])
        log_partition, expected = largest + total.log(), expected.div_(total[asked, None])
        entropy = total[b:].log() - e_log_e / total[b:]
        u = expected[b - asked.start :]
        ctx.temp, ctx.block_bytes = temp, block_bytes
        ctx.save_for_backward(*blocks.tensors, log_partition, expected[: b - asked.start])
        ctx.mark_non_differentiable(entropy)
        return log_partition[:b].clone(), u.clone(), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_u: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        z, prototypes, teacher_z, teacher_prototypes, bias, log_partition, expected = ctx.saved_tensors  # z / temp
        to_z, to_w = ctx.needs_input_grad[:2]
        grad_z = expected * (grad / ctx.temp)[:, None] if to_z else None
        if not to_w:
            return grad_z, *[None] * 7
        grad_w = torch.empty_like(prototypes)
        with _no_autocast(z):
            right = torch.cat([z * grad[:, None], grad_u])  # (b+c p)
            for part, logits in _Blocks(z, prototypes, teacher_z, teacher_prototypes, bias, ctx.block_bytes):
                torch.mm(logits.sub_(log_partition).exp_(), right, out=grad_w[part])
        return grad_z, grad_w, *[None] * 6


class _Kernels(torch.autograd.Function):
    """The same as `_Stream` by the kernels, with factors in bfloat16."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        prototypes: Tensor,
        temp: float,
        teacher_z: Tensor,
        teacher_prototypes: Tensor,
        center: Tensor,
        teacher_temp: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from esvit_pl.losses.kernels import attend

        half_z, w, half_teacher_z, teacher_w = (
            x.to(torch.bfloat16).contiguous() for x in (z, prototypes, teacher_z, teacher_prototypes)
        )
        bias = center / -teacher_temp
        log_partition, expected, _ = attend(half_z, w, w if ctx.needs_input_grad[0] else None, None, temp)
        teacher_partition, u, entropy = attend(half_teacher_z, teacher_w, w, bias, teacher_temp)
        ctx.temps = temp, teacher_temp
        ctx.save_for_backward(half_z, w, half_teacher_z, teacher_w, bias, log_partition, teacher_partition, expected)
        ctx.mark_non_differentiable(entropy)
        return log_partition.clone(), u, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_u: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        from esvit_pl.losses.kernels import add_gradient_

        z, w, teacher_z, teacher_w, bias, log_partition, teacher_partition, expected = ctx.saved_tensors
        temp, teacher_temp = ctx.temps
        to_z, to_w = ctx.needs_input_grad[:2]
        grad_z = expected * (grad / temp)[:, None] if to_z else None
        if not to_w:
            return grad_z, *[None] * 6
        grad_w = torch.zeros_like(w, dtype=torch.float32)
        add_gradient_(grad_w, z, w, None, temp, log_partition, grad / temp, z)
        add_gradient_(
            grad_w, teacher_z, teacher_w, bias, teacher_temp, teacher_partition, None, grad_u.to(w.dtype).contiguous()
        )
        return grad_z, grad_w, *[None] * 5


class _Blocks:
    """Iterates over blocks of prototypes: their slice, and logits (j b+c), all in the same memory one after another.

    Args:
        z: (b p), divided by the temperature.
        prototypes: (k p).
        teacher_z: (c p), divided by the temperature.
        teacher_prototypes: (k p).
        bias: (k,), -center divided by the temperature.
        block_bytes: for the logits of a block.
    """

    def __init__(
        self,
        z: Tensor,
        prototypes: Tensor,
        teacher_z: Tensor,
        teacher_prototypes: Tensor,
        bias: Tensor,
        block_bytes: int,
    ) -> None:
        self.tensors = (z, prototypes, teacher_z, teacher_prototypes, bias)
        rows = len(z) + len(teacher_z)
        self.size = min(max(1, block_bytes // (z.element_size() * max(1, rows))), len(prototypes))
        self.space = z.new_empty(self.size, rows)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        z, prototypes, teacher_z, teacher_prototypes, bias = self.tensors
        for start in range(0, len(prototypes), self.size):
            part = slice(start, min(start + self.size, len(prototypes)))
            logits = self.space[: part.stop - part.start]
            torch.mm(prototypes[part], z.mT, out=logits[:, : len(z)])
            torch.addmm(bias[part, None], teacher_prototypes[part], teacher_z.mT, out=logits[:, len(z) :])
            yield part, logits


def _block_bytes(z: Tensor, asked: int | None) -> int:
    if asked is None:
        return CPU_BLOCK_BYTES if z.device.type == "cpu" else GPU_BLOCK_BYTES
    if asked <= 0:
        raise ValueError(
            f"block_bytes must be positive, got {asked}; it is the size of a block of logits, None chooses one"
        )
    return asked


def _kernels_run(rows: Tensor) -> bool:
    if not rows.is_cuda:
        return False
    try:
        from esvit_pl.losses.kernels import can_run, work
    except ImportError:  # some builds of torch come without Triton
        return False
    return can_run(rows) and (isinstance(rows, FakeTensor) or work(rows.device, rows.shape[-1]))


def _no_autocast(x: Tensor) -> torch.autocast:
    """For backward too, which may run inside an autocast region."""
    return torch.autocast(x.device.type, enabled=False)
