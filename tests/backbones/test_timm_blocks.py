from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esvit_pl.backbones import build
from esvit_pl.backbones.timm_blocks import TokenBatchNorm

VIT = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "depth": 2, "num_heads": 2, "block_fn": "batch_norm_mlp"}


def vit(**changes):
    torch.manual_seed(0)
    backbone = build("vit_tiny_patch16_224", **{**VIT, **changes})
    for norm in (module for module in backbone.modules() if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm))):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return backbone


def test_tokens_are_normed_over_images_and_places():
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    norm = TokenBatchNorm(4).double()
    expected = (x - x.mean((0, 1))) / (x.var((0, 1), correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm.bn.running_mean, 0.1 * x.mean((0, 1)))


@torch.no_grad()
def test_a_block_norms_its_attention_by_token_and_its_mlp_by_channel():
    block = vit().model.blocks[0].train()
    x = torch.randn(3, 17, 24)
    seen = x + block.attn(F.layer_norm(x, (24,), block.norm1.weight, block.norm1.bias, 1e-6))
    tokens = seen.flatten(0, 1)
    normed = (tokens - tokens.mean(0)) / (tokens.var(0, correction=0) + 1e-5).sqrt()
    normed = (normed * block.norm2.bn.weight + block.norm2.bn.bias).view_as(x)
    torch.testing.assert_close(block(x), seen + block.mlp(normed))


def test_in_evaluation_an_image_is_seen_alone():
    backbone, x = vit(), torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        together = backbone.train()(x).pooled
        assert not torch.allclose(backbone(x[:2]).pooled, together[:2], atol=1e-3)
        backbone.eval()
        torch.testing.assert_close(backbone(x[:2]).pooled, backbone(x).pooled[:2])


def test_the_other_norms_are_the_plain_vit_s():
    model = vit().model
    assert isinstance(model.norm, nn.LayerNorm)
    assert [isinstance(block.norm1, nn.LayerNorm) for block in model.blocks] == [True] * 2
    plain = {name: value for name, value in VIT.items() if name != "block_fn"}
    counts = [sum(p.numel() for p in build("vit_tiny_patch16_224", **given).parameters()) for given in (VIT, plain)]
    assert counts[0] == counts[1]


def test_torch_s_conversion_for_several_gpus_leaves_the_layout():
    """SyncBatchNorm takes (rows, channels), which is what it gets."""
    block = nn.SyncBatchNorm.convert_sync_batchnorm(vit()).model.blocks[0].eval()
    assert isinstance(block.norm2.bn, nn.SyncBatchNorm)
    assert block.norm2(torch.randn(2, 17, 24)).shape == (2, 17, 24)


def test_blocks_computed_again_leave_the_same_statistics():
    states = []
    for enable in (False, True):
        backbone = vit().train()
        backbone.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        features = backbone(torch.randn(2, 3, 28, 28))
        (features.pooled.sum() + features.regions.sum()).backward()
        states.append([*backbone.buffers(), *(parameter.grad for parameter in backbone.parameters())])
    for plain, again in zip(*states, strict=True):
        torch.testing.assert_close(again, plain)


def test_an_unknown_block_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="block_fn from batch_norm_mlp, got 'batch_norm'"):
        vit(block_fn="batch_norm")
