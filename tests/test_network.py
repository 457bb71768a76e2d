from __future__ import annotations

import pytest
import torch
from torch import nn

from esvit_pl.backbones import build
from esvit_pl.heads import ProjectionHead, Prototypes
from esvit_pl.network import MultiCropNetwork


def network() -> MultiCropNetwork:
    torch.manual_seed(0)
    backbone = build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=4, img_size=32, drop_path_rate=0.0)
    heads = {
        "view": ProjectionHead(16, hidden_dim=8, out_dim=4, prototypes=Prototypes(4, 6)),
        "region": ProjectionHead(16, reads="regions", hidden_dim=8, out_dim=4, prototypes=Prototypes(4, 6)),
        "predictor": ProjectionHead(4, reads="view", hidden_dim=8, out_dim=3),
    }
    return MultiCropNetwork(backbone, nn.ModuleDict(heads))


def test_every_view_is_seen_as_if_alone():
    net = network().eval()
    views = [torch.randn(2, 3, side, side) for side in (32, 32, 16, 16, 24, 16)]
    seen = net(views)
    for v, view in enumerate(views):
        alone = net([view])
        assert torch.allclose(seen.pooled[v], alone.pooled[0], atol=1e-5)
        assert torch.allclose(seen.regions[v], alone.regions[0], atol=1e-5)
        assert seen.grids[v] == alone.grids[0]
        for head in ("view", "region", "predictor"):
            assert torch.allclose(seen.z[head][v], alone.z[head][0], atol=1e-5)
    assert seen.z["region"][0].shape == (2, 16, 4)
    assert seen.z["predictor"][0].shape == (2, 3)
    assert set(seen.prototypes) == {"view", "region"}


def test_one_pass_per_run_of_equal_views_and_one_per_head():
    net, calls = network(), []
    net.backbone.register_forward_hook(lambda module, args, output: calls.append(("backbone", len(args[0]))))
    net.heads["view"].register_forward_hook(lambda module, args, output: calls.append(("view", len(args[0]))))
    net([torch.randn(2, 3, side, side) for side in (32, 32, 16, 16, 16)])
    assert calls == [("backbone", 4), ("backbone", 6), ("view", 10)]


def test_heads_that_are_not_asked_for_do_not_run():
    seen = network()([torch.randn(1, 3, 32, 32)], {"view"})
    assert set(seen.z) == {"view"}


class Norm(nn.Module):
    """A head of somebody else's: batch norm and nothing more, without the attributes of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def test_batch_norm_in_a_head_sees_all_views_together_or_one_at_a_time():
    backbone, views = network().backbone, [torch.randn(4, 3, 32, 32), 3 * torch.randn(4, 3, 32, 32)]
    for head_rows, means in (("per_view", [0.0, 0.0]), ("joint", None)):
        seen = MultiCropNetwork(backbone, nn.ModuleDict({"norm": Norm()}), head_rows=head_rows)(views)
        rows = seen.z["norm"]
        found = [view.mean().item() for view in rows]
        assert torch.cat(rows).mean().item() == pytest.approx(0, abs=1e-5)
        assert seen.prototypes == {}
        if means is None:
            assert max(map(abs, found)) > 1e-3  # no view is centred by itself
        else:
            assert found == pytest.approx(means, abs=1e-5)


def test_a_head_that_reads_what_is_not_there_is_refused():
    head = Norm()
    head.reads = "predictor"
    with pytest.raises(ValueError, match=r"head 'norm' reads 'predictor'; it can read pooled, regions"):
        MultiCropNetwork(network().backbone, nn.ModuleDict({"norm": head, "predictor": Norm()}))
