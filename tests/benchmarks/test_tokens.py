from __future__ import annotations

import torch

from esvit_pl.backbones import build
from esvit_pl.backbones.swin import SwinBlock
from esvit_pl.benchmarks.tokens import PaddedBlock, token_savings, with_padding

SIZES = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}


def test_both_forms_give_the_same_and_every_part_is_timed():
    savings = list(token_savings(windows=(7,), crops=((2, 32), (1, 28)), batch_size=1, repeats=1, **SIZES))
    assert [(saving.side, saving.part) for saving in savings] == [
        (side, part) for side in (32, 28) for part in ("stage 1", "stage 2", "whole")
    ]
    for saving in savings:
        assert saving.error < 1e-4
        assert min(saving.seconds, saving.padded_seconds, saving.ratio) > 0


def test_the_straightforward_form_is_a_copy():
    backbone = build("swin", window=7, **SIZES)
    copy = with_padding(backbone)
    kinds = [[type(block) for stage in swin.stages for block in stage.blocks] for swin in (backbone, copy)]
    assert kinds == [[SwinBlock] * 2, [PaddedBlock] * 2]
    assert torch.equal(copy.norm.weight, backbone.norm.weight)
    assert copy.norm.weight is not backbone.norm.weight
