from __future__ import annotations

import numpy as np
import pytest
import torch

from esvit_pl.augment import (
    OFF,
    PARAMS,
    Recipe,
    crop_resize,
    cut_views,
    draw,
    finish_views,
    image_moments,
    largest_reduction,
    make_views,
)
from esvit_pl.augment.crop import absolute, relative
from esvit_pl.augment.photometric import luma
from esvit_pl.augment.views import _finish_together
from esvit_pl.seeding import numpy_generator

SMALL = Recipe(global_size=16, num_local=3, local_size=8)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).permute(2, 0, 1)


def drawn(recipe: Recipe = SMALL, **place: int):
    return draw(recipe.views, recipe, (40, 50), **{"seed": 0, "epoch": 0, "index": 0, **place})


def test_the_random_numbers_of_today_are_those_of_tomorrow():
    assert numpy_generator(1, 2, 3, 4).random(2).tolist() == [0.4196006514858778, 0.16574187221341774]
    parameters = drawn(seed=1)
    assert [absolute(box, (40, 50)) for box in parameters.boxes[:2].tolist()] == [(0, 1, 50, 38), (1, 6, 31, 30)]
    assert parameters.flipped.tolist() == [False, True, True, False, False]


def test_a_view_depends_on_seed_epoch_index_and_its_own_number():
    first = drawn()
    assert torch.equal(first.params, drawn().params)
    for place in ("seed", "epoch", "index"):
        other = drawn(**{place: 1})
        assert (other.boxes != first.boxes).any(1).all()
    assert len({tuple(box) for box in first.boxes[2:].tolist()}) == 3
    fewer = drawn(Recipe(global_size=16, num_local=1, local_size=8))
    assert torch.equal(fewer.boxes, first.boxes[:3])
    assert torch.equal(fewer.params, first.params[:3])


def test_switching_one_operation_off_moves_no_other():
    plain = Recipe(global_size=16, num_local=3, local_size=8, jitter=0)
    on, off = drawn(), drawn(plain)
    assert torch.equal(on.boxes, off.boxes)
    assert torch.equal(on.flipped, off.flipped)
    assert torch.equal(on.params[:, 5:], off.params[:, 5:])
    assert off.params[:, :5].tolist() == [list(OFF[:5])] * 5


def test_how_often_and_how_far():
    recipe = Recipe(num_local=1)
    draws = [drawn(recipe, index=index) for index in range(1500)]
    params = torch.stack([parameters.params for parameters in draws])  # (n v p)
    column = {name: params[..., PARAMS.index(name)] for name in PARAMS}
    jittered = column["brightness"] != 1
    assert jittered.float().mean(0).sub(0.8).abs().max() < 0.04
    assert (column["hue"] != 0).equal(jittered)
    assert column["grayscale"].mean(0).sub(0.2).abs().max() < 0.04
    assert (column["blur"] > 0).float().mean(0).sub(torch.tensor([1, 0.1, 0.5])).abs().max() < 0.04
    assert column["solarize"].mean(0).sub(torch.tensor([0, 0.2, 0])).abs().max() < 0.04
    assert torch.stack([parameters.flipped for parameters in draws]).float().mean(0).sub(0.5).abs().max() < 0.05
    for name, low, high in (("brightness", 0.6, 1.4), ("saturation", 0.8, 1.2), ("hue", -0.1, 0.1), ("blur", 0.1, 2.0)):
        values = column[name][jittered] if name != "blur" else column[name][column["blur"] > 0]
        assert low <= values.min() < low + 0.02
        assert high - 0.02 < values.max() <= high + 1e-6
    assert column["order"][jittered].unique().tolist() == list(range(24))


def test_views_without_colour_are_the_crops(image):
    plain = Recipe(
        global_size=16,
        num_local=3,
        local_size=8,
        jitter=0,
        grayscale=0,
        local_blur=0,
        global_blur=[0],
        global_solarize=[0],
    )
    parameters = drawn(plain, epoch=3)
    views = make_views(plain, image, parameters, normalized=False)
    assert [tuple(view.shape) for view in views] == [(3, 16, 16)] * 2 + [(3, 8, 8)] * 3
    for view, box, flip in zip(views, parameters.boxes.tolist(), parameters.flipped.tolist(), strict=True):
        assert torch.equal(view, crop_resize(image, absolute(box, (40, 50)), view.shape[-1], flip) / 255)


def test_dataset_normalisation(image):
    parameters = drawn()
    unit, normal = (make_views(SMALL, image, parameters, normalized=flag) for flag in (False, True))
    mean, std = (torch.tensor(value)[:, None, None] for value in (SMALL.mean, SMALL.std))
    for view, expected in zip(normal, unit, strict=True):
        assert view.is_contiguous()
        torch.testing.assert_close(view, (expected - mean) / std)


def test_image_normalisation_keeps_brightness_apart_and_view_normalisation_does_not(image):
    views = {kind: Recipe(global_size=16, num_local=0, normalize=kind) for kind in ("image", "view")}
    unit, by_image, by_view = (
        make_views(views[kind], image, drawn(views[kind]), normalized=flag)[0]
        for kind, flag in (("image", False), ("image", True), ("view", True))
    )
    scaled = image.float() / 255
    torch.testing.assert_close(by_image, (unit - scaled.mean()) / scaled.std(correction=0))
    torch.testing.assert_close(by_view, (unit - unit.mean()) / unit.std(correction=0))


def test_noise_is_in_units_of_the_normalised_view_and_the_same_every_time(image):
    still, noisy = (Recipe(global_size=64, num_local=0, noise=noise) for noise in (0.0, 0.5))
    parameters = drawn(noisy, index=2)
    difference = make_views(noisy, image, parameters)[1] - make_views(still, image, drawn(still, index=2))[1]
    deviation = float(parameters.params[1, PARAMS.index("noise")])
    assert 0 < deviation < 0.5
    assert difference.std() == pytest.approx(deviation, rel=0.05)
    torch.testing.assert_close(difference[0], difference[2], atol=1e-5, rtol=0)  # one field for the three channels
    again = make_views(noisy, image, drawn(noisy, index=2))[1]
    assert torch.equal(again, make_views(noisy, image, parameters)[1])


def test_one_mean_makes_every_view_grey_after_its_colour_changes(image):
    grey = Recipe(global_size=16, num_local=3, local_size=8, mean=[0.5], std=[0.25])
    parameters = drawn(grey)
    coloured = make_views(SMALL, image, parameters, normalized=False)
    for view, rgb in zip(make_views(grey, image, parameters), coloured, strict=True):
        torch.testing.assert_close(view, (luma(rgb[None])[0] - 0.5) / 0.25)
    supervised = draw((grey.supervised_view,), grey, (40, 50), seed=0, epoch=0, index=5)
    assert make_views(grey, image, supervised)[0].shape == (1, 224, 224)


@pytest.mark.parametrize("normalize", ["dataset", "image", "view"])
@pytest.mark.parametrize("channels", [3, 1])
def test_a_batch_finished_together_as_on_a_gpu_is_that_of_one_image_after_the_other(image, normalize, channels):
    numbers = {"mean": [0.5] * channels, "std": [0.25] * channels}
    recipe = Recipe(global_size=16, num_local=0, normalize=normalize, **numbers)
    images = [image, image.flip(0) // 2, 255 - image] * 4  # enough for every operation at every turn
    draws = [drawn(recipe, index=index) for index in range(len(images))]
    one_by_one = [make_views(recipe, image, parameters)[1] for image, parameters in zip(images, draws, strict=True)]
    crops = [cut_views(image, parameters)[1] for image, parameters in zip(images, draws, strict=True)]
    moments = [image_moments(recipe, image) for image in images] if normalize == "image" else None
    together = _finish_together(
        recipe,
        torch.stack(crops),
        torch.stack([parameters.params[1] for parameters in draws]),
        None if moments is None else torch.stack(moments),
        True,
    )
    torch.testing.assert_close(together, torch.stack(one_by_one), atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalize", ["dataset", "image", "view"])
def test_finishing_reads_nothing_back_from_the_device(image, normalize):
    # Tensors of the device "meta" have no values: reading one, or mixing them with those in main memory, is an error.
    recipe = Recipe(global_size=16, num_local=3, local_size=8, normalize=normalize, noise=0.1)
    params = torch.cat([drawn(recipe, index=index).params for index in range(12)])[None]  # every operation is there
    crops = [torch.zeros(1, 3, 16, 16, dtype=torch.uint8, device="meta")] * params.shape[1]
    moments = torch.zeros(1, 2, device="meta") if normalize == "image" else None
    noise = [torch.zeros(1, 1, 16, 16, device="meta")] * params.shape[1]
    views = finish_views(recipe, crops, params, moments, noise)
    assert {(view.shape, view.dtype, view.device.type) for view in views} == {((1, 3, 16, 16), torch.float32, "meta")}


def test_the_supervised_view_is_crop_and_flip(image):
    recipe = Recipe(supervised_size=12)
    parameters = draw((recipe.supervised_view,), recipe, (40, 50), seed=0, epoch=0, index=5)
    assert parameters.params.tolist() == [list(OFF)]
    box = absolute(parameters.boxes[0].tolist(), (40, 50))
    view = make_views(recipe, image, parameters, normalized=False)[0]
    assert torch.equal(view, crop_resize(image, box, 12, bool(parameters.flipped[0])) / 255)


def test_global_random_states_stay_untouched(image):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    make_views(SMALL, image, drawn())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def boxes(image_size: tuple[int, int], *views: tuple[int, tuple[int, int, int, int]]):
    """Parameters that hold sides and pixel boxes alone."""
    sides = tuple(side for side, _ in views)
    return drawn()._replace(size=sides, boxes=torch.tensor([relative(box, image_size) for _, box in views]))


@pytest.mark.parametrize(("views", "reduction"), [
    ([(32, (0, 0, 256, 256))], 8),
    ([(32, (0, 0, 256, 250))], 4),  # 31 pixels high at an eighth
    ([(32, (0, 0, 250, 256))], 4),
    ([(32, (0, 0, 256, 256)), (16, (8, 8, 64, 72))], 4),  # the second view has 8 pixels at an eighth, 16 at a quarter
    ([(32, (0, 0, 256, 256)), (16, (8, 8, 32, 72))], 2),
    ([(32, (0, 0, 256, 256)), (16, (8, 8, 30, 72))], 1),
    ([(32, (0, 0, 256, 256)), (16, (8, 8, 12, 72))], 1),  # enlarged from the whole image, too
], ids=str)  # fmt: skip
def test_no_reduction_makes_a_crop_smaller_than_its_view(views, reduction):
    assert largest_reduction(boxes((304, 400), *views), (304, 400)) == reduction


def test_the_crops_of_the_reduced_image_have_their_pixels():
    found = set()
    for index in range(60):
        size = (20 + 7 * index, 30 + 5 * index)
        parameters = draw(SMALL.views, SMALL, size, seed=0, epoch=0, index=index)
        reduction = largest_reduction(parameters, size)
        found.add(reduction)
        for larger in (factor for factor in (2, 4, 8) if factor <= 2 * reduction):
            image = tuple(-(-side // larger) for side in size)
            enough = [
                min(absolute(box, image)[2:]) >= side
                for box, side in zip(parameters.boxes.tolist(), parameters.size, strict=True)
            ]
            assert all(enough) == (larger <= reduction)
    assert found == {1, 2, 4, 8}
