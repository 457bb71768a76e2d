"""Compiled on a GPU, elsewhere in Triton's interpreter (conftest.py), whose bfloat16 does not work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from esvit_pl.losses import partition_and_target, prototypes

pytest.importorskip("triton")
from esvit_pl.losses import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def given():
    """200 rows are two tiles, the second one partly filled; 1,000 prototypes are no multiple of a tile either."""
    torch.manual_seed(0)
    rows, keys, values = (F.normalize(torch.randn(n, 32, device=DEVICE), dim=-1) for n in (200, 1000, 1000))
    return rows / 0.1, keys, values, torch.randn(1000, device=DEVICE)


def logits(rows, keys, bias=0.0):
    return rows.double() @ keys.double().mT + bias


@pytest.mark.parametrize("waves", [0, 4], ids=["one split", "two splits"])
def test_attention_is_that_of_logits(given, waves, monkeypatch):
    rows, keys, values, bias = given
    monkeypatch.setattr(kernels, "WAVES", waves)
    q = logits(rows, keys, bias).softmax(-1)
    log_partition, expected, entropy = kernels.attend(rows, keys, values, bias)
    assert torch.allclose(log_partition.double(), logits(rows, keys, bias).logsumexp(-1), atol=1e-5)
    assert torch.allclose(expected.double(), q @ values.double(), atol=1e-6)
    assert torch.allclose(entropy.double(), torch.special.entr(q).sum(-1), atol=1e-5)


def test_a_student_needs_no_second_matrix_and_an_evaluation_no_values(given):
    rows, keys, *_ = given
    q = logits(rows, keys).softmax(-1)
    log_partition, expected, _ = kernels.attend(rows, keys, keys, None)
    assert torch.allclose(expected.double(), q @ keys.double(), atol=1e-6)
    alone, nothing, _ = kernels.attend(rows, keys, None, None)
    assert torch.equal(alone, log_partition) and nothing.shape == (0, 32)


def test_gradients_are_added_up(given):
    rows, keys, right, bias = given
    right, weights, to = right[:200], torch.randn(200, device=DEVICE), torch.randn(1000, 32, device=DEVICE)
    for weight, added, factor in ((weights, None, rows), (None, bias, right)):
        q = logits(rows, keys, 0.0 if added is None else added).softmax(-1)
        log_partition, _, _ = kernels.attend(rows, keys, None, added)
        wanted = to.double() + (q if weight is None else q * weight[:, None].double()).mT @ factor.double()
        kernels.add_gradient_(to, rows, keys, added, log_partition, weight, factor)
        assert torch.allclose(to.double(), wanted, atol=1e-5)


def test_no_rows_are_no_problem(given):
    rows, keys, values, bias = given
    log_partition, expected, entropy = kernels.attend(rows[:0], keys, values, bias)
    assert (log_partition.shape, expected.shape, entropy.shape) == ((0,), (0, 32), (0,))


def test_fake_tensors_run_nothing(given):
    """As in `profiling.memory`, which predicts what a step allocates."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        rows, keys, values, bias = map(fake.from_tensor, given)
        log_partition, expected, _ = kernels.attend(rows, keys, values, bias)
        kernels.add_gradient_(torch.zeros_like(keys), rows, keys, bias, log_partition, None, expected)
    assert (log_partition.shape, expected.shape) == ((200,), (200, 32))


@pytest.fixture
def tried():
    """Whether the kernels work, asked anew, with factors that the interpreter can multiply."""
    kernels.work.cache_clear()
    factors = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    yield lambda p: kernels.work(torch.device(DEVICE), p, factors)
    kernels.work.cache_clear()


@pytest.mark.parametrize("p", [16, 256])
def test_kernels_that_work_are_taken_and_no_random_number_is_drawn(tried, p):
    before = torch.get_rng_state()
    with torch.autocast(DEVICE, torch.bfloat16):  # as the first step asks
        assert tried(p)
    assert torch.equal(torch.get_rng_state(), before)


def test_where_triton_does_not_work_it_says_so_once(tried, monkeypatch):
    def without_a_compiler(*_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.\nMore.")

    monkeypatch.setattr(kernels, "attend", without_a_compiler)
    with pytest.warns(UserWarning, match=r"without their Triton kernels.*RuntimeError: Failed to find C compiler\. Pl"):
        assert not tried(16)
    assert not tried(16)  # a second warning would be an error here


@pytest.mark.parametrize("number", range(3), ids=["log partition", "expected value", "entropy"])
@pytest.mark.parametrize("wrong", [1.05, float("nan")])
def test_wrong_results_are_not_trusted(tried, monkeypatch, number, wrong):
    attend = kernels.attend

    def distorted(*given):
        return [result * wrong if i == number else result for i, result in enumerate(attend(*given))]

    monkeypatch.setattr(kernels, "attend", distorted)
    with pytest.warns(UserWarning, match=r"Triton [\d.]+ gives results that are (inf|[\d.]+) % off; another version"):
        assert not tried(16)


def test_wrong_gradients_are_not_trusted(tried, monkeypatch):
    add_gradient_ = kernels.add_gradient_

    def last_prototypes_are_left_out(to, *given):
        add_gradient_(to, *given)
        to[-100:] = 0

    monkeypatch.setattr(kernels, "add_gradient_", last_prototypes_are_left_out)
    with pytest.warns(UserWarning, match="% off"):
        assert not tried(16)


@pytest.mark.parametrize(
    ("capability", "p", "works", "taken"),
    [
        ((9, 0), 256, True, True),
        ((8, 0), 16, True, True),
        ((9, 0), 256, False, False),  # tried in vain
        ((7, 5), 256, True, False),  # no bfloat16
        ((9, 0), 8, True, False),
        ((9, 0), 48, True, False),
        ((9, 0), 512, True, False),
    ],
)
def test_which_rows_are_taken(monkeypatch, capability, p, works, taken):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(kernels, "work", lambda device, p: works)
    assert kernels.can_run(torch.zeros(2, p)) is taken


def test_fake_rows_are_taken_and_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "work", lambda device, p: pytest.fail("a trial"))
    with FakeTensorMode() as fake:
        assert kernels.can_run(fake.from_tensor(torch.zeros(2, 32)))


@pytest.mark.parametrize("tile", ["LARGE_TILE", "SMALL_TILE"])
def test_tiles_change_nothing(given, tile, monkeypatch):
    rows, keys, values, bias = given
    wanted = kernels.attend(rows, keys, values, bias)
    monkeypatch.setattr(kernels, "_tile", lambda x: getattr(kernels, tile))
    for mine, other in zip(kernels.attend(rows, keys, values, bias), wanted, strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


FENCED = """
import ctypes, mmap, sys
import torch
from esvit_pl.losses import kernels

spaces = []

def fenced(*shape):
    size = 4 * torch.Size(shape).numel()
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    spaces.append(mmap.mmap(-1, room + mmap.PAGESIZE))
    fence = ctypes.addressof(ctypes.c_char.from_buffer(spaces[-1])) + room
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), mmap.PAGESIZE, 0) == 0
    x = torch.frombuffer(spaces[-1], dtype=torch.float32, count=size // 4, offset=room - size)
    return x.view(shape).copy_(torch.randn(shape))

r, k, split, missing = map(int, sys.argv[1:])
rows, right, keys, other = (fenced(n, 16) for n in (r, r, k, k))
bias, weights = fenced(k - missing), fenced(r)
for values in (None, keys, other):
    for added in (None, bias):
        statistics = fenced(3, -(-k // split), r)
        sums = torch.empty(1, 0, 16) if values is None else fenced(*statistics.shape[1:], 16)
        kernels._launch_attend(rows, keys, values, added, statistics, sums, split)
for added, weight, factor in ((None, None, rows), (bias, weights, rows), (bias, None, right)):
    kernels.add_gradient_(fenced(k, 16), rows, keys, added, fenced(r), weight, factor)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="fences memory as Linux does")
@pytest.mark.parametrize(
    ("r", "k", "split", "missing"),
    [
        (200, 1000, 512, 0),
        (129, 65, 64, 0),
        pytest.param(127, 63, 64, 0, marks=pytest.mark.slow),
        pytest.param(1, 1, 64, 0, marks=pytest.mark.slow),
        (200, 1000, 512, 1),
    ],
    ids=["splits", "one more than tiles", "one less", "one", "a bias that is too short"],
)
def test_nothing_behind_a_tensor_is_touched(r, k, split, missing):
    """A GPU would end the training with an illegal access, or not notice: a page behind every tensor is forbidden."""
    arguments = [str(value) for value in (r, k, split, missing)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", FENCED, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGSEGV if missing else 0), done.stderr


# The losses by kernels


@pytest.fixture
def by_kernels(monkeypatch):
    """`partition_and_target` takes them everywhere, with factors that the interpreter can multiply."""
    monkeypatch.setattr(prototypes, "_kernels_take", lambda rows: True)
    monkeypatch.setattr(prototypes._Kernels, "factors", torch.float32)


@pytest.mark.parametrize("learns", ["z w", "z", "w"])
def test_loss_and_gradients_are_those_without_kernels(by_kernels, given, learns):
    z, w, teacher_w, center = given
    z, teacher_z = z[:20].clone(), z[100:107].clone()
    leaves = [leaf.requires_grad_() for name, leaf in (("z", z), ("w", w)) if name in learns.split()]
    match = torch.arange(20, device=DEVICE) % 6  # the last teacher row is nobody's
    results = []
    for block_bytes in (None, 2**14):  # an explicit block takes no kernels
        partition, (u, entropy) = partition_and_target(
            z, w, 0.2, teacher_z, teacher_w, center, 0.5, block_bytes=block_bytes
        )
        loss = (partition - (z * u[match]).sum(-1) / 0.2).sum()  # a sum: its cotangents lie in one place in memory
        results.append([partition, u, entropy, *torch.autograd.grad(loss, leaves)])
    for mine, wanted in zip(*results, strict=True):
        assert (mine - wanted).norm() <= 1e-5 * wanted.norm()
    assert not torch.equal(results[0][0], results[1][0])  # the kernels did run


def test_an_evaluation_makes_no_expected_prototypes_of_the_student(by_kernels, given, monkeypatch):
    z, w, teacher_w, center = given
    asked = []
    attend = kernels.attend
    monkeypatch.setattr(kernels, "attend", lambda *given: asked.append(given[2] is not None) or attend(*given))
    with torch.no_grad():
        partition_and_target(z[:3], w, 0.2, z[3:5], teacher_w, center, 0.5)
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("device", "dtype", "factors", "able", "taken"),
    [
        ("cuda", torch.float32, torch.bfloat16, True, True),
        ("cuda", torch.float32, torch.bfloat16, False, False),
        ("cuda", torch.float32, torch.float16, True, False),
        ("cuda", torch.float32, torch.float32, True, False),  # no autocast
        ("cuda", torch.float64, torch.bfloat16, True, False),
        ("cpu", torch.float32, torch.bfloat16, True, False),
    ],
)
def test_kernels_are_for_gpus_under_bfloat16(monkeypatch, device, dtype, factors, able, taken):
    monkeypatch.setattr(prototypes, "factors", lambda asked: factors if asked == device else torch.float32)
    monkeypatch.setattr(kernels, "can_run", lambda rows: able)
    with FakeTensorMode():
        assert prototypes._kernels_take(torch.zeros(2, 32, device=device, dtype=dtype)) is taken


def test_a_cpu_takes_none():
    with torch.autocast("cpu", torch.bfloat16):
        assert not prototypes._kernels_take(torch.zeros(2, 32))


# On GPUs


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from esvit_pl.losses import kernels

architecture, kernel = int(sys.argv[1]), getattr(kernels, sys.argv[2])
rows, prototypes, shared = map(int, sys.argv[3:])
half, whole = ["rows_at", "keys_at", "values_at", "right_at"], ["r", "k", "size", "field"]
kinds = dict.fromkeys(half, "*bf16") | dict.fromkeys(whole, "i32") | dict.fromkeys(["log2_e"], "fp32")
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
    for bf16 in (True, False):
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            partition, (u, entropy) = partition_and_target(z, w, 0.1, teacher_z, teacher_w, center, 0.04)
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
    center = torch.zeros(prototypes, device="cuda")

    def once():
        with torch.autocast("cuda", torch.bfloat16):
            partition, (u, _) = partition_and_target(z, w, 0.1, z[:64], w, center, 0.04)
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
