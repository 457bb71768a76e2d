from __future__ import annotations

import pytest
import torch
import toys

from esvit_pl.evaluation import KNN, Baselines, EvaluationData, GreyHistogram, NearestImages, PerBlock, RawPixels


def test_raw_pixels_are_the_image_itself() -> None:
    x = torch.randn(2, 3, 32, 32)
    network = RawPixels()
    assert torch.equal(network(x).pooled, x.flatten(1))
    assert network.width == network.last_blocks_width(4) == 3072


def test_larger_images_are_averaged() -> None:
    x = torch.tensor([[[[1.0, 3.0, 0.0, 0.0], [5.0, 7.0, 0.0, 8.0], [0.0] * 4, [0.0] * 4]]])
    assert RawPixels(side=2, channels=1)(x).pooled.tolist() == [[4.0, 2.0, 0.0, 0.0]]


def test_histogram_by_hand() -> None:
    # From -1 to 3 in four bins of width 1: two, none, one, one of four pixels, times 4 bins.
    x = torch.tensor([-1.0, -0.5, 1.5, 3.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert GreyHistogram(bins=4)(x).pooled[0].tolist() == pytest.approx([2**0.5, 0.0, 1.0, 1.0])


def test_histogram_does_not_see_brightness_contrast_or_form() -> None:
    x = torch.rand(1, 3, 16, 16)
    histogram = GreyHistogram()
    expected = histogram(x).pooled
    assert torch.equal(histogram(x.flip(-1)).pooled, expected)
    assert (histogram(4 * x + 8).pooled - expected).abs().sum() < 0.1  # rounding may move a pixel over a border
    assert (histogram(x**4).pooled - expected).abs().sum() > 1  # other levels are another histogram
    assert expected.square().mean() == pytest.approx(1)


def test_an_image_of_one_colour_has_a_histogram() -> None:
    feature = GreyHistogram()(torch.full((1, 3, 8, 8), 0.3)).pooled
    assert torch.isfinite(feature).all()


def test_a_row_may_have_other_blocks_than_the_encoder() -> None:
    data = EvaluationData([torch.rand(6, 3, 32, 32)], [torch.rand(6, 3, 32, 32)])
    swin, pixels = toys.backbone().eval(), RawPixels(side=4)
    found = Baselines({"per_block": PerBlock(views=0)}, {"raw_pixels": pixels}).run(swin, data)
    assert found["per_block/pretrained"] == found["effective_rank/block2"]
    assert found["per_block/raw_pixels"] == PerBlock(views=0).run(pixels, data)["effective_rank/block1"]


@pytest.mark.parametrize("together", [True, False])
def test_a_look_sees_the_features_of_its_row_and_costs_no_pass(together) -> None:
    images, labels = torch.rand(12, 3, 4, 4), torch.arange(12) % 3
    pixels, histogram, passes = RawPixels(side=4), GreyHistogram(), []
    for encoder in (pixels, histogram):
        encoder.register_forward_pre_hook(lambda *_: passes.append(1))
    looks = {"pretrained": NearestImages(queries=2, k=2), "histogram": NearestImages(queries=2, k=2)}
    asked = Baselines({"knn": KNN(k=1)}, {"histogram": histogram}, looks=looks, together=together)
    found = asked.run(pixels, EvaluationData([(images, labels)], [(images, labels)]))
    assert len(passes) == 4  # bank and query of two encoders
    assert not [name for name in found if name.startswith("nearest")]
    for encoder, look in ((pixels, looks["pretrained"]), (histogram, looks["histogram"])):
        alone = NearestImages(queries=2, k=2)
        alone.run(encoder, EvaluationData([(images, labels)], [(images, labels)]))
        assert look.found == alone.found


def test_a_row_of_another_number_of_blocks_has_the_first_number_of_its_own() -> None:
    data = EvaluationData([torch.rand(12, 3, 16, 16)], [torch.rand(8, 3, 16, 16)])
    found = Baselines({"per_block": PerBlock(views=0)}, {"raw_pixels": RawPixels(8)}).run(toys.backbone().eval(), data)
    assert found["per_block/pretrained"] == found["effective_rank/block2"]
    assert found["per_block/raw_pixels"] == PerBlock(views=0).run(RawPixels(8), data)["effective_rank/block1"]


@pytest.mark.parametrize("network", [RawPixels(8), GreyHistogram(5)], ids=["pixels", "histogram"])
def test_keeps_the_contract_of_a_backbone(network) -> None:
    x = torch.randn(2, 3, 8, 8)
    features = network(x)
    assert features.pooled.shape == (2, network.width)
    assert features.regions.shape == (2, 1, network.region_width)
    assert features.grid == (1, 1)
    assert network.last_blocks(x, 4).shape == (2, network.last_blocks_width(4))
    assert not list(network.parameters())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="side of 1 pixel or more, got 0"):
        RawPixels(0)
    with pytest.raises(ValueError, match="2 bins or more, got 1"):
        GreyHistogram(1)
