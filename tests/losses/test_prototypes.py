from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from esvit_pl.losses import partition_and_target

TEMP, TEACHER_TEMP = 0.1, 0.05
ROW_BYTES = 8 * 11  # of the logits of one prototype in `problem`: 6 student and 5 teacher rows in float64


@pytest.fixture
def problem():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    return {
        "z": unit(torch.randn(2, 3, 5, dtype=torch.float64), dim=-1).requires_grad_(),
        "w": torch.randn(11, 5, dtype=torch.float64).requires_grad_(),
        "teacher_z": unit(torch.randn(5, 5, dtype=torch.float64), dim=-1),
        "teacher_w": torch.randn(11, 5, dtype=torch.float64),
        "center": torch.randn(11, dtype=torch.float64),
        "match": torch.tensor([4, 0, 0, 3, 1, 4]),  # teacher row of each student row; 2 is nobody's
    }


def on_logits(given):
    """Cross entropies as they are defined, and the teacher's entropy."""
    q = ((given["teacher_z"] @ given["teacher_w"].mT - given["center"]) / TEACHER_TEMP).softmax(-1).detach()
    log_p = (given["z"].flatten(0, -2) @ given["w"].mT / TEMP).log_softmax(-1)
    return -(q[given["match"]] * log_p).sum(-1).mean(), torch.special.entr(q).sum(-1)


def streamed(given, **options):
    partition, target = partition_and_target(
        given["z"], given["w"], TEMP, given["teacher_z"], given["teacher_w"], given["center"], TEACHER_TEMP, **options
    )
    matched = target.u[given["match"]].view(given["z"].shape)
    return (partition - (given["z"] * matched).sum(-1) / TEMP).mean(), target.entropy


def gradients(loss, given):
    return torch.autograd.grad(loss, (given["z"], given["w"]))


# Every prototype by itself, blocks of 4, 4 and 3, one block, and less memory than one prototype's logits need.
@pytest.mark.parametrize("block_bytes", [ROW_BYTES, 4 * ROW_BYTES, None, 1])
def test_loss_and_gradients_are_those_of_logits(problem, block_bytes):
    """dL/dW flows through the log partition and through u; both together are what autograd finds on logits."""
    wanted, wanted_entropy = on_logits(problem)
    loss, entropy = streamed(problem, block_bytes=block_bytes)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    for mine, reference in zip(gradients(loss, problem), gradients(wanted, problem), strict=True):
        assert torch.allclose(mine, reference, rtol=1e-10, atol=1e-12)
    assert torch.allclose(entropy, wanted_entropy, rtol=1e-10)


def test_in_float32_gradients_are_within_1e_5(problem):
    """With many prototypes, 1000 in blocks of 64, and sharp distributions on both sides."""
    torch.manual_seed(1)
    narrow = {"match": problem["match"], "center": torch.randn(1000)}
    for name in ("z", "teacher_z"):
        narrow[name] = problem[name].detach().float()
    for name in ("w", "teacher_w"):
        narrow[name] = 3 * torch.randn(1000, 5)
    exact = {name: value if name == "match" else value.double() for name, value in narrow.items()}
    for given in (narrow, exact):
        given["z"].requires_grad_()
        given["w"].requires_grad_()
    mine = gradients(streamed(narrow, block_bytes=4 * 11 * 64)[0], narrow)
    for grad, reference in zip(mine, gradients(on_logits(exact)[0], exact), strict=True):
        assert grad.dtype == torch.float32
        assert (grad - reference).norm() < 1e-5 * reference.norm()


def test_gradients_by_finite_differences(problem):
    def loss(z, w):
        return streamed(problem | {"z": z, "w": w}, block_bytes=4 * ROW_BYTES)[0]

    assert torch.autograd.gradcheck(loss, (problem["z"], problem["w"]))


def test_nothing_flows_to_the_teacher(problem):
    teacher_z, teacher_w = problem["teacher_z"].requires_grad_(), problem["teacher_w"].requires_grad_()
    _, target = partition_and_target(problem["z"], problem["w"], TEMP, teacher_z, teacher_w, problem["center"], 0.05)
    target.u.sum().backward()
    assert teacher_z.grad is None
    assert teacher_w.grad is None
    assert not target.entropy.requires_grad


def test_prototypes_that_stand_still_get_no_gradient(problem):
    wanted = gradients(streamed(problem)[0], problem)[0]
    still = problem | {"w": problem["w"].detach()}
    assert torch.allclose(torch.autograd.grad(streamed(still)[0], still["z"])[0], wanted)


def test_what_backward_keeps_does_not_grow_with_the_prototypes():
    def kept(k):
        """Elements saved for backward that are no input and not one number for each prototype."""
        seen = {}
        z, w = torch.randn(7, 3, requires_grad=True), torch.randn(k, 3, requires_grad=True)
        teacher_w = torch.randn(k, 3)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.setdefault(x.data_ptr(), x), lambda x: x):
            partition_and_target(z, w, 0.1, torch.randn(4, 3), teacher_w, torch.zeros(k), 0.1)
        inputs = {w.data_ptr(), teacher_w.data_ptr()}
        return sum(x.numel() for address, x in seen.items() if address not in inputs and x.shape != (k,))

    assert kept(500) == kept(50) > 0


def test_no_more_than_a_block_of_logits_exists_at_once():
    """Of 24 MB of logits in float32, by default."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            nonlocal largest
            result = operator(*args, **(kwargs or {}))
            made = (x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor))
            largest = max(largest, *(x.untyped_storage().nbytes() for x in made), 0)
            return result

    z, w = torch.randn(400, 4, requires_grad=True), torch.randn(10_000, 4, requires_grad=True)
    with Watch():
        partition, target = partition_and_target(z, w, 0.1, torch.randn(200, 4), w.detach(), torch.zeros(10_000), 0.1)
        torch.autograd.grad(partition.sum() + target.u.sum(), (z, w))
    assert 2**22 < largest <= 2**23


def test_under_autocast_forward_and_backward_stay_in_float32():
    torch.manual_seed(0)
    z, w = torch.randn(6, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    teacher_z, teacher_w, center = torch.randn(6, 5), torch.randn(11, 5), torch.randn(11)

    def results():
        partition, target = partition_and_target(z, w, 0.1, teacher_z, teacher_w, center, 0.05)
        loss = partition.sum() - target.u.square().sum()
        return [partition, *target, *torch.autograd.grad(loss, (z, w))]

    wanted = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine = results()
    for tensor, reference in zip(mine, wanted, strict=True):
        assert torch.equal(tensor, reference)
    teacher = (teacher_z, teacher_w, center, 0.05)
    narrow = partition_and_target(z.bfloat16(), w.bfloat16(), 0.1, *teacher)[0]
    assert torch.equal(narrow, partition_and_target(z.bfloat16().float(), w.bfloat16().float(), 0.1, *teacher)[0])


def test_by_hand():
    w, z = torch.eye(2), torch.tensor([[1.0, 0.0]])
    partition, sure = partition_and_target(z, w, 0.5, z, w, torch.zeros(2), 1e-3)
    assert partition.item() == pytest.approx(torch.tensor([2.0, 0.0]).logsumexp(0).item())
    assert sure.u.tolist() == [[1.0, 0.0]]
    assert sure.entropy.item() == 0.0  # and not nan, where a probability underflows
    _, centred = partition_and_target(z, w, 0.5, z, w, torch.tensor([1.0, 0.0]), 1.0)
    assert centred.u.tolist() == [[0.5, 0.5]]


def test_a_block_needs_memory():
    ones, w = torch.ones(1, 2), torch.eye(2)
    with pytest.raises(ValueError, match="block_bytes must be positive, got 0; .* None chooses one"):
        partition_and_target(ones, w, 0.1, ones, w, torch.zeros(2), 0.1, block_bytes=0)
