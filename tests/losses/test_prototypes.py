from __future__ import annotations

import pytest
import torch

from esvit_pl.losses import expected_prototype, log_partition


@pytest.fixture
def problem():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    return {
        "z": unit(torch.randn(6, 5, dtype=torch.float64), dim=-1).requires_grad_(),
        "teacher_z": unit(torch.randn(6, 5, dtype=torch.float64), dim=-1),
        "w": torch.randn(11, 5, dtype=torch.float64).requires_grad_(),
        "teacher_w": torch.randn(11, 5, dtype=torch.float64),
        "center": torch.randn(11, dtype=torch.float64),
    }


def test_loss_and_gradients_are_those_of_logits(problem):
    """dL/dW flows through the log partition and through u; both together are what autograd finds on logits."""
    z, w, temp, teacher_temp = problem["z"], problem["w"], 0.1, 0.05
    q = ((problem["teacher_z"] @ problem["teacher_w"].mT - problem["center"]) / teacher_temp).softmax(-1)
    on_logits = -(q * (z @ w.mT / temp).log_softmax(-1)).sum(-1).mean()
    wanted = torch.autograd.grad(on_logits, (z, w))

    target = expected_prototype(problem["teacher_z"], problem["teacher_w"], problem["center"], w, teacher_temp)
    loss = (log_partition(z, w, temp) - (z * target.u).sum(-1) / temp).mean()
    assert loss.item() == pytest.approx(on_logits.item(), rel=1e-12)
    for mine, reference in zip(torch.autograd.grad(loss, (z, w)), wanted, strict=True):
        assert torch.allclose(mine, reference, rtol=1e-10, atol=1e-12)
    assert torch.allclose(target.entropy, -(q * q.log()).sum(-1))


def test_gradients_by_finite_differences(problem):
    def loss(z, w):
        u = expected_prototype(problem["teacher_z"], problem["teacher_w"], problem["center"], w, 0.07).u
        return (log_partition(z, w, 0.1) - (z * u).sum(-1) / 0.1).mean()

    assert torch.autograd.gradcheck(loss, (problem["z"], problem["w"]))


def test_nothing_flows_to_the_teacher(problem):
    teacher_z, teacher_w = problem["teacher_z"].requires_grad_(), problem["teacher_w"].requires_grad_()
    target = expected_prototype(teacher_z, teacher_w, problem["center"], problem["w"], 0.05)
    target.u.sum().backward()
    assert teacher_z.grad is None
    assert teacher_w.grad is None
    assert not target.entropy.requires_grad


def test_by_hand():
    w = torch.eye(2)
    z = torch.tensor([[1.0, 0.0]])
    assert log_partition(z, w, 0.5).item() == pytest.approx(torch.tensor([2.0, 0.0]).logsumexp(0).item())
    sure = expected_prototype(z, w, torch.zeros(2), w, 1e-3)
    assert sure.u.tolist() == [[1.0, 0.0]]
    assert sure.entropy.item() == 0.0  # and not nan, where a probability underflows
    centred = expected_prototype(z, w, torch.tensor([1.0, 0.0]), w, 1.0)
    assert centred.u.tolist() == [[0.5, 0.5]]
