from __future__ import annotations

import re
from functools import partial

import pytest
import torch

from esvit_pl.backbones import Backbone, build
from esvit_pl.configs import assemble
from esvit_pl.configs.compose import compose
from esvit_pl.profiling import throughput as module
from esvit_pl.profiling.published import COSTS
from esvit_pl.profiling.throughput import (
    Throughput,
    counted,
    images_per_second,
    measured_models,
    multiply_adds,
    picture,
    published_models,
    throughput,
)


@pytest.fixture(scope="module")
def table() -> dict[str, Throughput]:
    names = ["swin_tiny_w7", "swin_tiny_w14", "swin_small_w7", "swin_base_w7", "swin_large_w7", "swin_micro_w7"]
    names += ["deit_small_p16", "vit_base_p16", "vit_base_p8", "resnet50"]
    return {name: counted(name, config(name)) for name in names}


def config(name: str, device: str = "meta") -> Backbone:
    with torch.device(device):
        return assemble.construct(compose("pretrain", f"backbone={name}"), "backbone").eval()


def meta(name: str, **settings) -> Backbone:
    with torch.device("meta"):
        return build(name, **settings).eval()


class Spy(Backbone):
    """Notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = {"in_chans": 2}
        self.layer = torch.nn.Linear(2, 2)
        self.calls = []

    def forward(self, x):
        y = self.layer(x.flatten(2).mean(2))
        self.calls.append((tuple(x.shape), y.dtype, torch.is_inference_mode_enabled()))


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        ("swin_tiny_w7", 4.5),
        ("swin_small_w7", 8.7),
        ("swin_base_w7", 15.4),
        ("swin_large_w7", 34.5),
        ("deit_small_p16", 4.6),
        ("vit_base_p16", 17.6),
        ("resnet50", 4.1),
    ],
)
def test_multiply_adds_are_those_of_the_architectures_papers(table, name, giga):
    assert table[name].flops / 1e9 == pytest.approx(giga, abs=0.06)


def test_a_swin_by_hand():
    """A map of 8 x 8 tokens of 8 channels in windows of 4 x 4: a plain block and a shifted one."""
    swin = meta("swin", embed_dim=8, depths=[2], num_heads=[2], window=4, img_size=32)
    n, w2, c, patch = 64, 16, 8, 4 * 4 * 3
    block = n * c * 3 * c + 2 * n * w2 * c + n * c * c + 2 * n * c * 4 * c
    assert multiply_adds(swin, 32) == n * patch * c + 2 * block


def test_a_vit_by_hand():
    n, c, patch = 197, 192, 16 * 16 * 3
    block = n * c * 3 * c + 2 * n * n * c + n * c * c + 2 * n * c * 4 * c
    assert multiply_adds(meta("vit_tiny_patch16_224"), 224) == 196 * patch * c + 12 * block


def test_products_of_attention_are_counted_where_torch_s_own_kernel_takes_them():
    """Nothing but those products grows with the window: each of n tokens sees w2 keys, twice."""
    n, c = 64, 8
    cvt = {w: meta("cvt", dims=[c], depths=[1], num_heads=[2], windows=[w]) for w in (4, 8)}
    assert multiply_adds(cvt[8], 32) - multiply_adds(cvt[4], 32) == 2 * n * (64 - 16) * c
    vil = {"dims": [c], "depths": [1], "num_heads": [2], "patch_sizes": [4], "windows": [4], "num_globals": [0]}
    vil |= {"sliding": [True], "positions": ["relative"], "img_size": 32}
    near, wide = (meta("vil", mode=mode, **vil) for mode in (-1, 0))  # its own chunk; and three of the 8 around it,
    assert multiply_adds(wide, 32) - multiply_adds(near, 32) == 2 * n * 8 * 16 * c  # which are computed and masked


def test_a_pass_is_one_of_inference_and_the_rate_is_the_median_of_those_after_the_first(monkeypatch):
    spy, taken = Spy(), iter([90.0, 1.0, 3.0, 2.0])

    def scripted(run, device):
        run()
        return next(taken)

    monkeypatch.setattr(module, "seconds", scripted)
    settings = {"side": 6, "batch_size": 4, "repeats": 3, "precision": "float32"}
    assert images_per_second(spy, budget_seconds=1e9, **settings) == 2.0
    assert spy.calls == [((4, 2, 6, 6), torch.float32, True)] * 4


def test_bf16_and_the_budget():
    spy = Spy()
    assert images_per_second(spy, side=6, batch_size=1, repeats=9, budget_seconds=0.0, precision="bf16") > 0
    assert spy.calls == [((1, 2, 6, 6), torch.bfloat16, True)] * 2


def test_rows_are_counted_and_measured(table):
    (row,) = throughput({"swin_micro_w7": partial(config, "swin_micro_w7", "cpu")}, batch_size=2)
    assert row == table["swin_micro_w7"]._replace(batch_size=2, images_per_second=row.images_per_second)
    assert row.images_per_second > 0


def test_what_does_not_fit_is_left_out_with_a_line(monkeypatch, capsys):
    names = ("swin_large_w7", "swin_micro_w7")
    builders = {
        name: partial(assemble.construct, compose("pretrain", f"backbone={name}"), "backbone") for name in names
    }
    monkeypatch.setattr(module, "images_per_second", lambda backbone, **how: 1.0)
    monkeypatch.setattr(module, "available_bytes", lambda device: 700 * 2**20)
    assert [row.backbone for row in throughput(builders, batch_size=2)] == ["swin_micro_w7"]
    said = capsys.readouterr().out
    assert re.fullmatch(r"swin_large_w7 is left out: batch 2 needs (\d+) MiB; 700 MiB are available\n", said)
    weights = 4 * 195.0e6 / 2**20
    assert weights < int(said.split()[7]) < 1.2 * weights


def test_the_published_models_are_those_with_a_throughput_and_a_linear_probe():
    models = {(model.method, model.name): model for model in published_models()}
    assert len(models) == 8 + 12
    swin = models["EsViT", "Swin-S/W14"]
    assert (swin.images_per_second, swin.accuracy, swin.start) == (383, pytest.approx(0.808), pytest.approx(0.794))
    assert models["large convnets", "BYOL RN200w2"].parameters == 250e6
    assert ("MoCo-v3", "ViT-L-BN/7") in models
    assert not [model for model in models if "iGPT" in model[1] or "masked" in model[0]]


def test_measured_models_are_those_whose_accuracy_is_published(table):
    rows = [table[name]._replace(images_per_second=3.0) for name in ("swin_large_w7", "vit_base_p8", "swin_tiny_w14")]
    first, second = measured_models([*rows, table["swin_base_w7"]])
    assert (first.method, first.name, first.images_per_second) == ("EsViT", "Swin-T/W14", 3.0)
    assert (first.accuracy, first.start) == (pytest.approx(0.787), pytest.approx(0.779))
    assert (second.method, second.name, second.start) == ("DINO", "ViT-B/8", None)
    assert second.accuracy == pytest.approx(0.801)
    costs = [table["vit_base_p8"]._replace(backbone=name, images_per_second=1.0) for name in COSTS]
    assert [(model.method, model.name) for model in measured_models(costs)][2:5] == [
        ("MoCo-v3", "ViT-L-BN/7"),
        ("large convnets", "SwAV RN50w5"),
        ("large convnets", "BYOL RN200w2"),
    ]
    assert [len(picture(chosen).axes) for chosen in ((), rows)] == [1, 2]


def test_bad_input():
    with pytest.raises(ValueError, match="batch_size from 1 on, got 0"):
        next(throughput({}, batch_size=0))
    with pytest.raises(ValueError, match="precision 'float32' or 'bf16', got 'fp8'"):
        next(throughput({}, precision="fp8"))
