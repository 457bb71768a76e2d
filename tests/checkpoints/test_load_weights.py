from __future__ import annotations

import pytest
import torch
import toys
from torch import nn

from esvit_pl.backbones import build
from esvit_pl.checkpoints.load_weights import load_, resized


def test_weights_are_loaded_by_name():
    module, other = nn.Linear(2, 3), nn.Linear(2, 3)
    load_(module, other.state_dict(), "a.pth")
    assert torch.equal(module.weight, other.weight)


def test_everything_that_does_not_fit_is_told_at_once_and_nothing_is_changed():
    module = toys.backbone()
    before = toys.state(module)
    state = toys.backbone(window=2).state_dict()
    state["norm.bias"] = torch.zeros(5)
    state["extra.weight"] = state.pop("norm.weight")
    with pytest.raises(ValueError, match="does not fit") as error:
        load_(module, state, "a.pth (student)")
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert str(error.value).splitlines() == [
        "a.pth (student) does not fit:",
        "  missing: norm.weight",
        "  not in the model: extra.weight",
        f"  of another shape: {table} (9, 1) instead of (49, 1) (windows of 2 and 4); "
        f"{table.replace('layers.0', 'layers.1')} (9, 2) instead of (49, 2) (windows of 2 and 4); "
        "norm.bias (5,) instead of (16,)",
    ]
    assert toys.largest_difference(toys.state(module), before) == 0


def test_numbers_that_loading_would_change_are_refused():
    """Quantised, complex, sparse weights, and those that were saved from "meta", load into torch without a word."""
    state = nn.Linear(2, 3).state_dict()
    for weight, kind in {
        (state["weight"] * 10).to(torch.int8): "int8",
        state["weight"].to(torch.complex64): "complex64",
        state["weight"].to_sparse(): "float32 sparse_coo",
        state["weight"].to("meta"): "float32 on meta",
    }.items():
        with pytest.raises(ValueError, match=f"\n  of another kind: weight {kind} instead of float32$"):
            load_(nn.Linear(2, 3), {**state, "weight": weight}, "a.pth")
    load_(nn.Linear(2, 3), {**state, "weight": state["weight"].to(torch.float8_e4m3fn)}, "a.pth")


def test_a_relative_table_is_resized_as_a_picture_of_offsets():
    """A table that is linear in the row offset stays so, up to the wiggle of torch's bicubic kernel (0.05 a step)."""
    old, new = 13, 27  # windows of 7 and 14
    rows = torch.arange(old).float()[:, None].expand(old, old).flatten()
    table = torch.stack([rows, torch.ones(old * old)], dim=1)  # two heads
    big = resized("a.relative_position_bias_table", table, torch.Size([new * new, 2]))
    rows = big[:, 0].view(new, new)
    centers = (torch.arange(new) + 0.5) * old / new - 0.5
    assert torch.allclose(rows[4:-4], centers[4:-4, None].expand(-1, new), atol=0.05)
    assert torch.allclose(big[:, 1], torch.ones(new * new))


def test_prefix_tokens_of_an_absolute_table_stay():
    table = torch.randn(1, 1 + 4 * 4, 3)
    big = resized("pos_embed", table, torch.Size([1, 1 + 6 * 6, 3]))
    assert torch.equal(big[:, 0], table[:, 0])
    assert big.shape == (1, 37, 3)
    lines = resized("layer1.0.x_pos_embed", torch.arange(4.0)[None, :, None], torch.Size([1, 8, 1]))
    # A quarter behind the second entry the kernel's weights are -27/256, 225/256, 67/256, -9/256.
    assert lines.flatten()[3:5].tolist() == pytest.approx([332 / 256, 3 - 332 / 256])


def test_a_window_of_7_starts_one_of_14():
    small, big = (build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=w) for w in (7, 14))
    with pytest.raises(ValueError, match="windows of 7 and 14"):
        load_(big, small.state_dict(), "a.pth")
    load_(big, small.state_dict(), "a.pth", resize=True)
    assert torch.equal(big.norm.weight, small.norm.weight)
    tables = [model.layers[0].blocks[0].attn.relative_position_bias_table for model in (small, big)]
    assert tables[1].shape == (27 * 27, 1)
    assert tables[1][27 * 13 + 13].item() == pytest.approx(tables[0][13 * 6 + 6].item(), abs=1e-6)  # no offset


def test_vil_and_vit_tables_are_resized():
    for of, to in (({"img_size": 64}, {"img_size": 96}), ({"windows": [2, 2]}, {"windows": [4, 4]})):
        sizes = {
            "dims": [8, 16],
            "depths": [1, 1],
            "num_heads": [1, 2],
            "patch_sizes": [4, 2],
            "windows": [4, 4],
            "num_globals": [1, 1],
            "sliding": [True, False],
            "img_size": 64,
        }
        for positions in (["relative"] * 2, ["absolute"] * 2):
            small, big = (build("vil", **{**sizes, "positions": positions, **change}) for change in (of, to))
            load_(big, small.state_dict(), "a.pth", resize=True)
