from __future__ import annotations

import torch

from benchmarks.tokens import PaddedBlock, token_savings, with_padding
from esvit_pl.backbones import build
from esvit_pl.backbones.swin import SwinBlock

SIZES = {"window": 7, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}


def test_both_forms_give_the_same_and_every_part_is_measured():
    savings = list(token_savings(build("swin", **SIZES), crops=((2, 32), (1, 28)), batch_size=1, repeats=1))
    assert [saving.part for saving in savings] == [
        f"{side} px, {part}" for side in (32, 28) for part in ("stage 1", "stage 2", "whole")
    ]
    for saving in savings:
        assert saving.error < 1e-5
        assert min(saving.our_seconds, saving.straight_seconds, saving.ratio) > 0
    whole = savings[2]
    assert whole.our_bytes < whole.straight_bytes  # 8 and 4 tokens a side, padded to 14 and 7


def test_the_straightforward_form_is_a_copy():
    backbone = build("swin", **SIZES)
    copy = with_padding(backbone)
    kinds = [[type(block) for stage in swin.stages for block in stage.blocks] for swin in (backbone, copy)]
    assert kinds == [[SwinBlock] * 2, [PaddedBlock] * 2]
    assert torch.equal(copy.norm.weight, backbone.norm.weight)
    assert copy.norm.weight is not backbone.norm.weight
