from __future__ import annotations

import golden_files
import pytest
import torch
from torch import nn

from esvit_pl.heads import ProjectionHead, Prototypes


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files.paths("head"), ids=lambda path: path.stem)
@torch.no_grad()
def test_head_is_the_released_one(path):
    golden = golden_files.read(path)
    settings = golden.settings
    head = ProjectionHead(
        settings["in_dim"],
        hidden_dim=settings["hidden_dim"],
        out_dim=settings["bottleneck_dim"],
        num_layers=settings["layers"],
        batch_norm=settings["use_bn"],
        prototypes=Prototypes(settings["bottleneck_dim"], settings["out_dim"]),
    )
    head.load_state_dict({golden_files.to_head(key): value for key, value in golden.part("w").items()})
    head.train(settings.get("training", settings.get("mode") == "train"))
    logits = head(golden.tensors["x"]) @ head.prototypes().mT
    assert golden_files.relative_error(logits, golden.tensors["y"]) < 1e-5


def test_initialisation_is_the_recipe():
    head = ProjectionHead(64, hidden_dim=512, out_dim=32, prototypes=Prototypes(32, 2000))
    linears = [module for module in head.mlp if isinstance(module, nn.Linear)]
    assert [linear.weight.std().item() for linear in linears] == pytest.approx([0.02] * 3, rel=0.05)
    assert all(linear.bias.eq(0).all() for linear in linears)
    assert head.prototypes.gain.eq(1).all()
    assert head.prototypes.direction.abs().max().item() == pytest.approx(32**-0.5, rel=0.02)  # torch's Linear default


def test_projections_and_prototypes_have_unit_length():
    head = ProjectionHead(6, hidden_dim=8, out_dim=4, prototypes=Prototypes(4, 5))
    assert torch.allclose(head(torch.randn(2, 3, 6)).norm(dim=-1), torch.ones(2, 3), atol=1e-6)
    assert torch.allclose(head.prototypes().norm(dim=-1), torch.ones(5), atol=1e-6)


def test_prototypes_are_gains_times_directions_of_length_one_and_so_are_their_gradients():
    prototypes = Prototypes(4, 5).double()
    with torch.no_grad():
        prototypes.gain.uniform_(0.5, 2)
    by_hand = prototypes.gain * prototypes.direction / prototypes.direction.norm(dim=1, keepdim=True)
    assert torch.allclose(prototypes(), by_hand, rtol=1e-12)
    ours, wanted = (
        torch.autograd.grad(w.pow(3).sum(), [prototypes.direction, prototypes.gain]) for w in (prototypes(), by_hand)
    )
    for mine, other in zip(ours, wanted, strict=True):
        assert torch.allclose(mine, other, rtol=1e-10, atol=1e-14)


def test_a_fixed_gain_does_not_learn():
    assert not Prototypes(4, 5, fixed_gain=True).gain.requires_grad
    assert Prototypes(4, 5).gain.requires_grad


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="num_layers of 1 or more, got 0"):
        ProjectionHead(4, num_layers=0)
