"""The two passes of `losses.prototypes` as Triton kernels: no block of logits is written to the GPU's memory.

Products are multiplied in the type of the rows (bfloat16 for tensor cores); sums and exponentials are float32. The
kernels are registered as operators of torch, so that fake tensors (`profiling.memory`) and torch.compile know their
results' shapes.
"""

# r rows, b those of a tile | k prototypes, j those of a tile | p projection width | s splits of the prototypes

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

LOG2_E = math.log2(math.e)
LARGE_TILE, SMALL_TILE = (128, 64), (64, 32)
"""Rows and prototypes of a tile in `attend`; in `add_gradient_` prototypes and rows. The large tile is for GPUs whose
multiprocessors have `LARGE_SHARED_BYTES` of shared memory (those of data centres), the small one for others."""
LARGE_SHARED_BYTES = 160 * 2**10
HOW = {"num_warps": 8, "num_stages": 2}
TRIAL_ERROR = 0.002
"""Largest error of the kernels that is accepted when they are tried; rounding to bfloat16 causes 0.0003 of it."""
WAVES = 4
"""The prototypes are split among so many programs per multiprocessor that few multiprocessors idle at the end."""


def attend(rows: Tensor, keys: Tensor, values: Tensor | None, bias: Tensor | None) -> tuple[Tensor, ...]:
    """Attention of rows over prototypes: softmax(rows keys^T + bias) values.

    Args:
        rows: (r p), p a power of two from 16 to 256.
        keys: (k p), of the same type.
        values: (k p), of the same type; None leaves the values out.
        bias: (k,) float32, or None.

    Returns:
        Log partition (r,), expected value (r p; without rows where `values` is None) and entropy (r,), in float32.
    """
    (r, p), k = rows.shape, len(keys)
    tile_rows, tile_prototypes = _tile(rows)
    tiles = triton.cdiv(r, tile_rows)
    splits = max(
        1, min(triton.cdiv(WAVES * _multiprocessors(rows), max(1, tiles)), triton.cdiv(k, 8 * tile_prototypes))
    )
    size = tile_prototypes * triton.cdiv(triton.cdiv(k, splits), tile_prototypes)
    statistics = rows.new_empty(3, splits, r, dtype=torch.float32)
    sums = rows.new_empty(splits, r if values is not None else 0, p, dtype=torch.float32)
    _launch_attend(rows, keys, values, bias, statistics, sums, size)
    # Each split has its own largest logit; logarithms are to the base of 2 until here.
    largest, total, e_log_e = statistics
    top = largest.amax(0)
    down = top - largest
    shrink = torch.exp2(-down)
    e_log_e = ((e_log_e - down * total) * shrink).sum(0)
    total = (total * shrink).sum(0)
    expected = (sums * shrink[:, : sums.shape[1], None]).sum(0) / total[: sums.shape[1], None]
    return (top + total.log2()) / LOG2_E, expected, total.log() - e_log_e / total / LOG2_E


@torch.library.custom_op("esvit_pl::add_gradient_", mutates_args=("to",))
def add_gradient_(
    to: Tensor,
    rows: Tensor,
    keys: Tensor,
    bias: Tensor | None,
    log_partition: Tensor,
    weights: Tensor | None,
    right: Tensor,
) -> None:
    """to += (weights softmax(rows keys^T + bias))^T right.

    Args:
        to: (k p) float32.
        rows: as in `attend`.
        keys: as in `attend`.
        bias: as in `attend`.
        log_partition: (r,), of `attend`.
        weights: (r,) float32, a factor for each row; None is 1.
        right: (r p), of the rows' type.
    """
    (r, p), k = rows.shape, len(keys)
    tile_prototypes, tile_rows = _tile(rows)
    if not r:
        return
    with torch.cuda.device_of(rows):
        _add_gradient[(triton.cdiv(k, tile_prototypes),)](
            to,
            rows,
            keys,
            keys if bias is None else bias,
            log_partition,
            log_partition if weights is None else weights,
            right,
            r,
            k,
            LOG2_E,
            P=p,
            B=tile_rows,
            J=tile_prototypes,
            BIAS=bias is not None,
            WEIGHTS=weights is not None,
            ROWS_ARE_RIGHT=right.data_ptr() == rows.data_ptr(),
            **HOW,
        )


def can_run(rows: Tensor) -> bool:
    """Whether the kernels can be used for rows (r p) on their GPU. For fake tensors the kernels are not tried out."""
    p = rows.shape[-1]
    able = torch.version.hip is None and torch.cuda.get_device_capability(rows.device) >= (8, 0)
    if not able or p & (p - 1) or not 16 <= p <= 256:
        return False
    return isinstance(rows, FakeTensor) or work(rows.device, p)


@cache
def work(device: torch.device, p: int, factors: torch.dtype = torch.bfloat16) -> bool:
    """Whether Triton can compile the kernels for rows of width p, and whether their results are right.

    Triton needs a C compiler, which not every cluster has, and generates machine code for each kind of GPU. If
    something is wrong, one warning says what.
    """
    try:
        error = _trial_error(device, p, factors)
        if error <= TRIAL_ERROR:
            return True
        said, advice = f"gives results that are {100 * error:.3g} % off", "another version of Triton may not"
    except Exception as raised:  # of Triton, of the compiler's process, of the driver
        lines = f"{type(raised).__name__}: {raised}".strip().splitlines()
        said = f"ends with {' '.join(lines[:2])}"
        advice = "install a C compiler (gcc or clang, environment variable CC)"
    warnings.warn(
        f"the losses run without their Triton kernels, in float32 and slower: on {device} Triton {triton.__version__} "
        f"{said}; {advice}",
        stacklevel=2,
    )
    return False


def _trial_error(device: torch.device, p: int, factors: torch.dtype) -> float:
    """The largest error of the kernels on a small problem, relative to the norm of the result.

    It draws no random numbers, and compares with float64, which neither autocast nor
    `torch.set_float32_matmul_precision` changes.
    """

    def waves(n: int, phase: float) -> Tensor:
        made: Tensor = (torch.arange(n * p, device=device).mul(0.7).add(phase).sin() / p**0.25).view(n, p).to(factors)
        return made

    # Numbers of rows and prototypes that are not multiples of the tiles.
    rows, keys, values, bias = waves(200, 0), waves(1000, 1), waves(1000, 2), waves(1000, 3)[:, 0].float().contiguous()
    exact_rows, exact_keys, exact_values = rows.double(), keys.double(), values.double()
    mine, wanted = [], []
    for added, weights, right in ((bias, None, values[:200]), (None, bias[:200], rows)):
        matrix = keys if added is None else values
        log_partition, *others = attend(rows, keys, matrix, added)
        to = torch.zeros_like(keys, dtype=torch.float32)
        add_gradient_(to, rows, keys, added, log_partition, weights, right)
        mine += [log_partition, *others, to]
        logits = exact_rows @ exact_keys.mT + (0.0 if added is None else added)
        q = logits.softmax(-1)
        weighted = q if weights is None else q * weights[:, None]
        expected = q @ (exact_keys if added is None else exact_values)
        wanted += [logits.logsumexp(-1), expected, torch.special.entr(q).sum(-1), weighted.mT @ right.double()]
    errors = [(x - y).norm() / y.norm() for x, y in zip(mine, wanted, strict=True)]
    return float(torch.stack(errors).nan_to_num(float("inf")).amax())


def _tile(x: Tensor) -> tuple[int, int]:
    small = x.is_cuda and _properties(x).shared_memory_per_block_optin < LARGE_SHARED_BYTES
    return SMALL_TILE if small else LARGE_TILE


def _multiprocessors(x: Tensor) -> int:
    return _properties(x).multi_processor_count if x.is_cuda else 1


def _properties(x: Tensor) -> Any:
    return torch.cuda.get_device_properties(x.device)


@torch.library.custom_op("esvit_pl::attend", mutates_args=("statistics", "sums"))
def _launch_attend(
    rows: Tensor, keys: Tensor, values: Tensor | None, bias: Tensor | None, statistics: Tensor, sums: Tensor, size: int
) -> None:
    (r, p), k, splits = rows.shape, len(keys), statistics.shape[1]
    tile_rows, tile_prototypes = _tile(rows)
    if not r:
        return
    with torch.cuda.device_of(rows):
        _attend[(triton.cdiv(r, tile_rows), splits)](
            rows,
            keys,
            keys if values is None else values,
            keys if bias is None else bias,
            statistics,
            sums,
            r,
            k,
            size,
            LOG2_E,
            statistics.stride(0),
            P=p,
            B=tile_rows,
            J=tile_prototypes,
            BIAS=bias is not None,
            VALUES=values is not None,
            KEYS_ARE_VALUES=values is not None and values.data_ptr() == keys.data_ptr(),
            **HOW,
        )


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    rows_at,
    keys_at,
    values_at,
    bias_at,
    statistics_at,  # (3 s r): largest logit, sums of e = 2^(logit - largest), of e log2 e
    sums_at,  # (s r p): sums of e times value
    r,
    k,
    size,  # prototypes of a split
    log2_e,
    field,  # from one of the statistics to the next
    P: tl.constexpr,
    B: tl.constexpr,
    J: tl.constexpr,
    BIAS: tl.constexpr,
    VALUES: tl.constexpr,
    KEYS_ARE_VALUES: tl.constexpr,
):
    row, channel = tl.program_id(0) * B + tl.arange(0, B), tl.arange(0, P)
    split = tl.program_id(1)
    x = tl.load(rows_at + row[:, None] * P + channel, mask=row[:, None] < r, other=0.0)  # (b p)
    largest = tl.full([B], -1e30, tl.float32)  # not -inf: -inf - -inf is nan
    total = tl.zeros([B], tl.float32)
    e_log_e = tl.zeros([B], tl.float32)
    sums = tl.zeros([B, P], tl.float32)
    stop = tl.minimum((split + 1) * size, k)
    for start in range(split * size, stop, J):
        prototype = start + tl.arange(0, J)
        here = prototype < stop
        key = tl.load(keys_at + prototype[:, None] * P + channel, mask=here[:, None], other=0.0)  # (j p)
        logits = tl.dot(x, key.T, input_precision="ieee") * log2_e
        if BIAS:
            logits += tl.load(bias_at + prototype, mask=here, other=0.0) * log2_e
        logits = tl.where(here, logits, -1e30)
        before = largest
        largest = tl.maximum(before, tl.max(logits, 1))
        down = largest - before
        shrink = tl.exp2(-down)
        log_e = logits - largest[:, None]
        e = tl.exp2(log_e)
        e_log_e = (e_log_e - down * total) * shrink + tl.sum(e * log_e, 1)
        total = total * shrink + tl.sum(e, 1)
        if VALUES:
            if KEYS_ARE_VALUES:
                value = key
            else:
                value = tl.load(values_at + prototype[:, None] * P + channel, mask=here[:, None], other=0.0)
            sums = tl.dot(e.to(value.dtype), value, sums * shrink[:, None], input_precision="ieee")
    at = statistics_at + split * r + row
    tl.store(at, largest, mask=row < r)
    tl.store(at + field, total, mask=row < r)
    tl.store(at + 2 * field, e_log_e, mask=row < r)
    if VALUES:
        tl.store(sums_at + (split * r + row)[:, None] * P + channel, sums, mask=row[:, None] < r)


@triton.jit  # type: ignore[untyped-decorator]
def _add_gradient(  # type: ignore[no-untyped-def]
    to_at,
    rows_at,
    keys_at,
    bias_at,
    log_partition_at,
    weights_at,
    right_at,
    r,
    k,
    log2_e,
    P: tl.constexpr,
    B: tl.constexpr,
    J: tl.constexpr,
    BIAS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    ROWS_ARE_RIGHT: tl.constexpr,
):
    prototype, channel = tl.program_id(0) * J + tl.arange(0, J), tl.arange(0, P)
    here = prototype < k
    at = to_at + prototype[:, None] * P + channel
    key = tl.load(keys_at + prototype[:, None] * P + channel, mask=here[:, None], other=0.0)  # (j p)
    sums = tl.load(at, mask=here[:, None], other=0.0)
    bias = tl.zeros([J], tl.float32)
    if BIAS:
        bias = tl.load(bias_at + prototype, mask=here, other=0.0) * log2_e
    for start in range(0, r, B):
        row = start + tl.arange(0, B)
        present = row < r
        x = tl.load(rows_at + row[:, None] * P + channel, mask=present[:, None], other=0.0)  # (b p)
        partition = tl.load(log_partition_at + row, mask=present, other=float("inf")) * log2_e
        logits = tl.dot(key, x.T, input_precision="ieee") * log2_e + bias[:, None]  # (j b)
        share = tl.exp2(logits - partition)
        if WEIGHTS:
            share *= tl.load(weights_at + row, mask=present, other=0.0)
        if ROWS_ARE_RIGHT:
            right = x
        else:
            right = tl.load(right_at + row[:, None] * P + channel, mask=present[:, None], other=0.0)
        sums = tl.dot(share.to(right.dtype), right, sums, input_precision="ieee")
    tl.store(at, sums, mask=here[:, None])
