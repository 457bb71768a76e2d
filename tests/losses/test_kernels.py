"""Compiled on a GPU, elsewhere in Triton's interpreter (conftest.py), whose bfloat16 does not work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from esvit_pl.losses import partition_and_target

pytest.importorskip("triton")
from esvit_pl.losses import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def given():
    """200 rows are two tiles, the second one partly filled; 1,000 prototypes are no multiple of a tile either."""
    torch.manual_seed(0)
    unit = [F.normalize(torch.randn(n, 32, device=DEVICE), dim=-1) for n in (200, 1000, 1000)]
    return [*unit, torch.randn(1000, device=DEVICE)]


def on_logits(rows, keys, bias, temp):
    return (rows.double() @ keys.double().mT / temp + bias.double()).softmax(-1)


@pytest.mark.parametrize("waves", [0, 4], ids=["one split", "two splits"])
def test_attention_is_that_of_logits(given, waves, monkeypatch):
    rows, keys, values, bias = given
    monkeypatch.setattr(kernels, "WAVES", waves)
    q = on_logits(rows, keys, bias, 0.04)
    log_partition, expected, entropy = kernels.attend(rows, keys, values, bias, 0.04)
    logits = rows.double() @ keys.double().mT / 0.04 + bias
    assert torch.allclose(log_partition.double(), logits.logsumexp(-1), atol=1e-5)
    assert torch.allclose(expected.double(), q @ values.double(), atol=1e-6)
    assert torch.allclose(entropy.double(), torch.special.entr(q).sum(-1), atol=1e-5)


def test_a_student_needs_no_second_matrix_and_an_evaluation_no_values(given):
    rows, keys, *_ = given
    q = on_logits(rows, keys, torch.zeros(1000, device=DEVICE), 0.1)
    log_partition, expected, _ = kernels.attend(rows, keys, keys, None, 0.1)
    assert torch.allclose(expected.double(), q @ keys.double(), atol=1e-6)
    alone, nothing, _ = kernels.attend(rows, keys, None, None, 0.1)
    assert torch.equal(alone, log_partition) and nothing.shape == (0, 32)


def test_gradients_are_added_up(given):
    rows, keys, right, bias = given
    right, weights, to = right[:200], torch.randn(200, device=DEVICE), torch.randn(1000, 32, device=DEVICE)
    for weight, bias_, factor in ((weights, torch.zeros(1000, device=DEVICE), rows), (None, bias, right)):
        q = on_logits(rows, keys, bias_, 0.1)
        log_partition, _, _ = kernels.attend(rows, keys, None, bias_ if weight is None else None, 0.1)
        wanted = to.double() + (q if weight is None else q * weight[:, None].double()).mT @ factor.double()
        kernels.add_gradient_(to, rows, keys, bias_ if weight is None else None, 0.1, log_partition, weight, factor)
        assert torch.allclose(to.double(), wanted, atol=1e-5)


def test_no_rows_are_no_problem(given):
    rows, keys, values, bias = given
    log_partition, expected, entropy = kernels.attend(rows[:0], keys, values, bias, 0.1)
    assert (log_partition.shape, expected.shape, entropy.shape) == ((0,), (0, 32), (0,))


def test_fake_tensors_run_nothing(given):
    """As in `benchmarks.memory`, which predicts what a step allocates."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        rows, keys, values, bias = map(fake.from_tensor, given)
        log_partition, expected, _ = kernels.attend(rows, keys, values, bias, 0.1)
        kernels.add_gradient_(torch.zeros_like(keys), rows, keys, bias, 0.1, log_partition, None, expected)
    assert (log_partition.shape, expected.shape) == ((200,), (200, 32))


def test_where_triton_does_not_work_it_says_so_once(monkeypatch):
    def without_a_compiler(*_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.\nMore.")

    device = torch.device(DEVICE)
    kernels.work.cache_clear()
    assert kernels.work(device, 16)
    kernels.work.cache_clear()
    monkeypatch.setattr(kernels, "attend", without_a_compiler)
    with pytest.warns(UserWarning, match=r"without their Triton kernels.*RuntimeError: Failed to find C compiler\. Pl"):
        assert not kernels.work(device, 16)
    assert not kernels.work(device, 16)  # a second warning would be an error here
    kernels.work.cache_clear()


@pytest.mark.parametrize("tile", ["LARGE_TILE", "SMALL_TILE"])
def test_tiles_change_nothing(given, tile, monkeypatch):
    rows, keys, values, bias = given
    wanted = kernels.attend(rows, keys, values, bias, 0.1)
    monkeypatch.setattr(kernels, "_tile", lambda x: getattr(kernels, tile))
    for mine, other in zip(kernels.attend(rows, keys, values, bias, 0.1), wanted, strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from esvit_pl.losses import kernels

architecture, kernel = int(sys.argv[1]), getattr(kernels, sys.argv[2])
rows, prototypes, shared = map(int, sys.argv[3:])
half, whole = ["rows_at", "keys_at", "values_at", "right_at"], ["r", "k", "size", "field"]
kinds = dict.fromkeys(half, "*bf16") | dict.fromkeys(whole, "i32") | dict.fromkeys(["scale", "log2_e"], "fp32")
for same in (True, False):
    constants = {"P": 256, "B": rows, "J": prototypes, "BIAS": not same, "VALUES": True, "KEYS_ARE_VALUES": same}
    constants |= {"WEIGHTS": same, "ROWS_ARE_RIGHT": same}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    made = compile(source, target=GPUTarget("cuda", architecture, 32), options=kernels.HOW)
    assert made.metadata.shared <= shared * 2**10, made.metadata.shared
"""


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["_attend", "_add_gradient"])
@pytest.mark.parametrize(
    ("architecture", "tile", "shared"),
    [(80, kernels.LARGE_TILE, 163), (89, kernels.SMALL_TILE, 99), (90, kernels.LARGE_TILE, 227)],
    ids=["A100", "L4", "H100"],
)
def test_they_compile_for_gpus_that_are_not_here(architecture, tile, shared, kernel):
    """With the widest rows, into the KiB that a multiprocessor of the kind lets one block share."""
    sizes = tile if kernel == "_attend" else tile[::-1]
    arguments = [str(value) for value in (architecture, kernel, *sizes, shared)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_gpu
@pytest.mark.parametrize(("rows", "teacher_rows", "prototypes", "width"), [(1000, 500, 4097, 256), (3, 0, 100, 16)])
def test_on_a_gpu_they_give_what_float32_gives_up_to_bfloat16(rows, teacher_rows, prototypes, width):
    torch.manual_seed(0)
    z, w, teacher_z, teacher_w = (
        F.normalize(torch.randn(n, width, device="cuda"), dim=-1) for n in (rows, prototypes, teacher_rows, prototypes)
    )
    z.requires_grad_(), w.requires_grad_()
    center = 0.1 * torch.randn(prototypes, device="cuda")
    results = []
    for factors in (torch.bfloat16, torch.float32):
        partition, (u, entropy) = partition_and_target(z, w, 0.1, teacher_z, teacher_w, center, 0.04, factors=factors)
        loss = partition.square().mean() + (u @ z.detach().mT).sum() / max(1, teacher_rows)
        results.append([partition, u, entropy, *torch.autograd.grad(loss, (z, w))])
        assert all(part.dtype == torch.float32 for part in results[-1])
    for mine, wanted in zip(*results, strict=True):
        assert (mine - wanted).norm() <= 1e-2 * wanted.norm()
    assert not torch.equal(results[0][0], results[1][0])  # the kernels did run


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_on_a_gpu_nothing_waits_and_no_block_is_held():
    rows, prototypes = 4096, 65536
    z, w = (torch.randn(n, 256, device="cuda") / 16 for n in (rows, prototypes))
    z.requires_grad_(), w.requires_grad_()
    center, options = torch.zeros(prototypes, device="cuda"), {"factors": torch.bfloat16}

    def once():
        partition, (u, _) = partition_and_target(z, w, 0.1, z[:64], w, center, 0.04, **options)
        torch.autograd.grad(partition.sum() + u.sum(), (z, w))

    once()  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        once()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    held = torch.cuda.max_memory_allocated() - before
    assert held < 4 * rows * prototypes / 4  # a quarter of one float32 matrix of logits
