from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
import toys
from torch import nn

from esvit_pl.backbones import Backbone, Features, Recomputable, TimmBackbone, build, recompute
from esvit_pl.backbones.timm_study import check_recomputes
from esvit_pl.ema import make_teacher
from esvit_pl.profiling.measure import peak_bytes

# Batch norms (CvT, the convnets), norms alone, windows, random chunks (ViL); stages or layers as blocks.
OURS = {name: {**sizes, "drop_path_rate": 0.5} for name, sizes in toys.FAMILIES.items()}
TIMM: dict[str, dict[str, Any]] = {
    "resnet18": {"drop_path_rate": 0.5},
    "efficientnet_b0": {"drop_path_rate": 0.5},
    "convnext_atto": {"drop_path_rate": 0.5},
    "vit_tiny_patch16_224": {"drop_path_rate": 0.5},
}
ALL = OURS | {name: {"img_size": 64, **sizes} for name, sizes in TIMM.items()}


def made(name: str) -> Backbone:
    torch.manual_seed(0)
    return build(name, **ALL[name]).train()


def step(backbone: Backbone, *, autocast: bool = False) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, {name: gradient, buffer or next random number} and peak bytes of two passes of two sizes."""
    torch.manual_seed(1)
    views = [torch.randn(4, 3, 64, 64), torch.randn(5, 3, 32, 32)]
    losses = []

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            seen = [backbone(view) for view in views]
        losses.append(sum(x.float().sin().square().mean() for features in seen for x in features[:2]))
        losses[0].backward()

    peak = peak_bytes(train)
    found = {name: p.grad for name, p in backbone.named_parameters() if p.requires_grad}
    return losses[0].item(), {**found, **dict(backbone.named_buffers()), "random": torch.rand(1)}, peak


@pytest.mark.parametrize("name", ALL)
def test_everything_is_the_same_to_the_last_bit_and_takes_less_memory(name):
    plain, recomputing = made(name), made(name)
    recomputing.set_grad_checkpointing()
    (loss, found, peak), (other_loss, others, other_peak) = step(plain), step(recomputing)
    assert loss == other_loss
    assert found.keys() == others.keys()
    for key, value in found.items():
        assert torch.equal(value, others[key]), key
    assert any(value.abs().max() > 0 for value in found.values())
    # The rest is what blocks hand to one another, and gradients: almost all of it in ResNet-18 at this size.
    assert other_peak < (0.8 if name in OURS else 1.0) * peak


@pytest.mark.parametrize("name", ["swin", "cvt"])
def test_autocast_is_the_same_in_backward(name):
    plain, recomputing = made(name), made(name)
    recomputing.set_grad_checkpointing()
    found, others = step(plain, autocast=True)[1], step(recomputing, autocast=True)[1]
    assert all(torch.equal(value, others[key]) for key, value in found.items())


@pytest.mark.parametrize("name", ["cvt", "resnet18"])
def test_a_batch_norm_counts_a_batch_once_even_if_it_came_after_the_switch(name):
    backbone = made(name)
    backbone.set_grad_checkpointing()
    for module in list(backbone.modules()):
        for key, norm in list(module.named_children()):
            if isinstance(norm, nn.BatchNorm2d):  # as conversion to synchronised ones does
                setattr(module, key, nn.BatchNorm2d(norm.num_features))
    step(backbone)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert [norm.num_batches_tracked.item() for norm in norms] == [2] * len(norms)
    assert all("running_mean" in dict(norm.named_buffers()) for norm in norms)
    assert not any(key.startswith("_buffers_during") for norm in norms for key in vars(norm))


def test_a_block_that_ends_with_a_batch_norm_gets_its_statistics_back():
    """Recomputation stops as soon as it has what backward needs: inside the norm, by an exception."""

    class Block(Recomputable):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x))

    block = Block()
    block.grad_checkpointing = True
    before = dict(block.named_buffers())
    for steps in (1, 2):
        block(torch.randn(3, 2, 4, 4)).sum().backward()
        assert all(buffer is before[name] for name, buffer in block.named_buffers())
        assert block.norm.num_batches_tracked == steps


class Recomputed(Exception):
    pass


@pytest.mark.parametrize("name", ["swin", "cvt", "vil", "vit_tiny_patch16_224"])
def test_without_a_backward_nothing_is_set_up(name, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise Recomputed

    monkeypatch.setattr(recompute, "checkpoint", refuse)
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", refuse)  # timm's
    backbone, x = made(name), torch.zeros(2, 3, 64, 64)
    backbone.set_grad_checkpointing()
    with pytest.raises(Recomputed):
        backbone(x)
    backbone.eval()(x)
    backbone.eval().last_blocks(x, 1)
    if name in OURS:
        with torch.no_grad():
            backbone.train()(x)
    make_teacher(backbone.train())(x)  # a copy without
    backbone.set_grad_checkpointing(False)
    backbone(x)


@pytest.mark.parametrize("name", ["cvt", "resnet18"])
def test_names_copies_and_pickles_are_as_before(name):
    backbone = made(name)
    keys = list(backbone.state_dict())
    backbone.set_grad_checkpointing()
    wanted = step(backbone)[1]
    assert list(backbone.state_dict()) == keys
    for again in (deepcopy(made(name)), pickle.loads(pickle.dumps(made(name)))):
        again.set_grad_checkpointing()
        copy = deepcopy(again)
        assert all(torch.equal(value, wanted[key]) for key, value in step(copy)[1].items())
        assert all(p.grad is None for p in again.parameters())


def test_a_timm_model_without_it_is_refused_with_the_reason():
    backbone = build("vgg11", img_size=64)
    with pytest.raises(ValueError, match=r"vgg11 cannot compute blocks again.*gradient checkpointing not supported"):
        backbone.set_grad_checkpointing()
    backbone.set_grad_checkpointing(False)
    assert backbone.train().grad_checkpointing is False


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("switch", r"resnet18 cannot compute blocks again in backward: its switch changes nothing"),
        ("statistics", r"backward would change its layer1\.0\.bn1\.num_batches_tracked a second time"),
    ],
)
def test_a_timm_model_that_pretends_is_found_out(lacking, message, monkeypatch):
    check_recomputes.cache_clear()
    backbone = build("resnet18", img_size=64)
    assert isinstance(backbone, TimmBackbone)
    if lacking == "switch":
        monkeypatch.setattr(type(backbone.model), "set_grad_checkpointing", lambda self, enable=True: None)
    else:
        monkeypatch.setattr("esvit_pl.backbones.timm_study.hold_statistics", lambda model: None)
    with pytest.raises(ValueError, match=message):
        backbone.set_grad_checkpointing()
    check_recomputes.cache_clear()


def test_a_backbone_without_blocks_of_that_kind_says_what_to_do():
    class Plain(Backbone):
        def forward(self, x: torch.Tensor) -> Features:
            return Features(x.mean((2, 3)), x.flatten(2).mT, (x.shape[2], x.shape[3]))

    Plain().set_grad_checkpointing(False)
    with pytest.raises(ValueError, match=r"Plain has no blocks.*inherit from esvit_pl\.backbones\.Recomputable"):
        Plain().set_grad_checkpointing()
