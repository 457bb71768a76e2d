from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from esvit_pl.backbones import IGPT, build
from esvit_pl.backbones.igpt import color_raster

CONF = Path(__file__).parents[2] / "conf" / "backbone"
TINY = {"width": 8, "depth": 4, "num_heads": 2, "side": 4, "bits": 2}


def tiny(**changes) -> IGPT:
    torch.manual_seed(0)
    backbone = IGPT(**{**TINY, **changes}).double()
    for parameter in backbone.parameters():  # biases and gains that are seen
        torch.nn.init.normal_(parameter, std=0.5)
    return backbone


def read_pixel_by_pixel(backbone: IGPT, colors: list[int]) -> torch.Tensor:
    """(n d) of one image: a GPT-2 that looks back from each token in a loop, and norms by root mean square."""

    def norm(module, x):
        return module.weight * x / (x.square().mean() + 1e-5).sqrt()

    inputs = [backbone.start, *(backbone.colors.weight[color] for color in colors[:-1])]
    stream = [token + backbone.positions[place] for place, token in enumerate(inputs)]
    for block in backbone.blocks:
        qkv = [block.qkv.weight @ norm(block.norm1, x) + block.qkv.bias for x in stream]
        after = []
        for i, x in enumerate(stream):
            seen = []
            for head in torch.arange(8).view(block.num_heads, -1):
                scores = [(qkv[i][head] @ qkv[j][8 + head]) / len(head) ** 0.5 for j in range(i + 1)]
                weights = torch.stack(scores).softmax(0)
                seen.append(sum(weight * qkv[j][16 + head] for j, weight in enumerate(weights)))
            x = x + block.proj.weight @ torch.cat(seen) + block.proj.bias
            hidden = F.gelu(block.mlp.fc1.weight @ norm(block.norm2, x) + block.mlp.fc1.bias, approximate="tanh")
            after.append(x + block.mlp.fc2.weight @ hidden + block.mlp.fc2.bias)
        stream = after
    return torch.stack([norm(backbone.norm, x) for x in stream])


def test_it_is_a_gpt_that_reads_pixel_by_pixel():
    backbone, image = tiny(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = read_pixel_by_pixel(backbone, backbone.raster(image)[0].tolist())
        torch.testing.assert_close(backbone(image).regions[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "published"), [("small", 76e6), ("medium", 455e6), ("large", 1.36e9), ("xlarge", 6.8e9)]
)
def test_published_sizes(size, published):
    spec = yaml.safe_load((CONF / f"igpt_{size}.yaml").read_text())
    spec.pop("_target_")
    with torch.device("meta"):
        backbone = build(**spec)
    assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(published, rel=0.01)


def test_what_predicts_a_pixel_has_seen_neither_it_nor_any_later_one():
    backbone, image = tiny(), torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    other = image.clone()
    other[0, :, 1, 2] = 2.0  # pixel 6
    with torch.no_grad():
        one, two = backbone(image).regions[0], backbone(other).regions[0]
    changed = (one != two).any(1).tolist()
    assert changed == [False] * 7 + [True] * 9


def test_the_norm_subtracts_no_mean():
    """(3, 4, 0, 0) has a root mean square of 2.5."""
    backbone = IGPT(width=4, depth=2, num_heads=1, side=2)
    expected = torch.tensor([1.2, 1.6, 0.0, 0.0])
    torch.testing.assert_close(backbone.norm(torch.tensor([3.0, 4.0, 0.0, 0.0])), expected, rtol=1e-5, atol=0)
    assert [name for name, _ in backbone.norm.named_parameters()] == ["weight"]


def test_images_of_any_size_are_averaged_to_the_raster():
    mean, std = [0.5] * 3, [0.25] * 3
    image = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).repeat(3, 1, 1)[None]  # the mean is 1/4
    found = color_raster((image - 0.5) / 0.25, side=1, bits=2, mean=mean, std=std)
    assert found.tolist() == [[1 + 4 + 16]]
    backbone = tiny()
    image = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    large = image.repeat_interleave(3, 2).repeat_interleave(5, 3)
    assert torch.equal(backbone.raster(large), backbone.raster(image))


def test_the_pooled_feature_is_that_of_the_middle_block():
    backbone, image = tiny(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    blocks = [*backbone.block_features(image)]
    features, last = backbone.features_and_blocks(image, 2)
    assert torch.equal(features.pooled, blocks[1].pooled)
    assert torch.equal(last, torch.cat([blocks[0].pooled, blocks[1].pooled], 1))
    assert last.shape[1] == backbone.last_blocks_width(2)
    assert torch.equal(backbone(image).regions, blocks[3].regions)
    assert torch.equal(backbone.stage_regions(image, 2).regions, blocks[2].regions)
    assert torch.equal(tiny(block=4)(image).pooled, blocks[3].pooled)
    with pytest.raises(ValueError, match="last_blocks needs n between 1 and the backbone's 2 blocks, got 3"):
        backbone.last_blocks(image, 3)


def test_it_is_made_again_from_its_spec():
    backbone, image = tiny(block=3), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    again = build(**backbone.spec).double()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again(image).pooled, backbone(image).pooled)
    assert {again.depths()[name] for name in ("start", "colors.weight", "positions")} == {0}
    assert (again.depths()["blocks.3.proj.weight"], again.depths()["norm.weight"]) == (4, 4)


def test_recomputing_blocks_changes_nothing():
    image, gradients = torch.randn(2, 3, 8, 8, dtype=torch.float64), []
    for enable in (False, True):
        backbone = tiny()
        backbone.set_grad_checkpointing(enable)
        backbone(image).regions.square().sum().backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "width must be a multiple of num_heads, got 8 and 3"),
        ({"side": 0}, "positive side, got 0"),
        ({"block": 5}, "between 1 and depth; got depth=4 and block=5"),
        ({"std": [0.2]}, "a mean and a std for each channel"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        IGPT(**{**TINY, **changes})
