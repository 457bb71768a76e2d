from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from esvit_pl.augment import Recipe
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Reading, SkippedImage, Splits, UnreadableMetadata, folder, readable

RECIPE = Recipe(global_size=8, local_size=4, eval_resize=8, eval_crop=8, num_local=1)


@pytest.fixture
def root(tmp_path):
    """Twenty grey pictures, whose value is their number times ten; 3 and 11 are broken."""
    for number in range(20):
        Image.new("RGB", (16, 16), (10 * number,) * 3).save(tmp_path / f"{number:02d}.png")
    for number in (3, 11):
        (tmp_path / f"{number:02d}.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return tmp_path


def skipping(root, budget=0.2):
    return folder(root, on_bad_image="skip", bad_image_budget=budget)


def of(splits, **settings):
    return ImageDataModule(splits, RECIPE, batch_size=5, eval_batch_size=5, **{"num_workers": 0, **settings})


def passed(data, epoch):
    data.set_epoch(epoch)
    return list(data.train_dataloader())


def shown(batches):
    return torch.cat([batch["index"] for batch in batches]).tolist()


def test_an_image_that_cannot_be_read_is_an_error_by_default(root):
    with pytest.raises(ValueError, match=r"cannot read the image file '.*(03|11)\.png'"):
        passed(of(folder(root)), 0)


def test_skip_draws_others_in_their_places_the_same_in_every_process_and_pass(root):
    first = [shown(passed(of(skipping(root)), epoch)) for epoch in range(4)]
    for indices in first:
        assert len(indices) == 20
        assert {3, 11}.isdisjoint(indices)
        assert len(set(indices)) in (17, 18)
    assert len({tuple(sorted(indices)) for indices in first}) > 1  # others in every epoch
    parallel = of(skipping(root), num_workers=2)
    for epoch in (3, 1):  # as a resumed run begins in the middle
        assert shown(passed(parallel, epoch)) == first[epoch]
    assert shown(passed(of(skipping(root), reduced_decoding=True), 2)) == first[2]


def test_what_loading_processes_meet_is_counted_in_the_main_one(root):
    splits = skipping(root)
    assert splits.problems() == []
    passed(of(splits, num_workers=2), 0)
    assert [(part, name) for part, name, _ in splits.problems()] == [("train", "03.png"), ("train", "11.png")]
    assert all("cannot read the image file" in sentence for *_, sentence in splits.problems())
    Image.new("RGB", (8, 8)).save(root / "03.png")
    assert splits.problems()[0][2] == "it could not be read then, and can be read now"


def test_an_image_brings_its_own_label_and_stays_in_its_split(tmp_path):
    for part, start in (("train", 0), ("val", 100)):
        for number in range(8):
            (tmp_path / part / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (start + 10 * number,) * 3).save(
                tmp_path / part / "ab"[number % 2] / f"{number}.png"
            )
    (tmp_path / "val" / "a" / "4.png").write_bytes(b"broken")
    splits = folder(tmp_path, on_bad_image="skip")
    (batch,) = ImageDataModule(splits, RECIPE, num_workers=0).query_dataloader()
    greys = ((batch["image"][:, 0, 0, 0] * RECIPE.std[0] + RECIPE.mean[0]) * 255).round().int().tolist()
    assert len(greys) == 8
    assert all(grey >= 100 for grey in greys)
    assert batch["label"].tolist() == [grey // 10 % 2 for grey in greys]
    assert batch["label"].tolist() == [splits.val.labels[index] for index in batch["index"]]


def test_more_than_the_budget_is_an_error_that_counts(root):
    with pytest.raises(
        ValueError,
        match=r"2 of 20 images cannot be read, and dataset.bad_image_budget=0.05 allows 1; .* the last one: ",
    ):
        passed(of(skipping(root, 0.05)), 0)
    assert Reading(on_bad_image="skip").allowed(30) == 1  # 1 % of few images is still one
    assert Reading(on_bad_image="skip").allowed(60000) == 600
    for number in range(20):
        (root / f"{number:02d}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="5 of 20 images cannot be read"):
        passed(of(skipping(root)), 0)


def test_a_data_set_of_ones_own_may_skip_too():
    class Picky(ArrayDataset):
        def __getitem__(self, index):
            if index == 2:
                raise SkippedImage("not this one")
            return super().__getitem__(index)

    images = Picky(torch.zeros(10, 3, 16, 16, dtype=torch.uint8), [f"{index}.png" for index in range(10)])
    assert 2 not in shown(passed(of(Splits(images)), 0))


def test_another_image_is_a_pure_function_of_its_place():
    def make(index):
        if index in (4, 5):
            raise SkippedImage
        return index

    assert readable(make, 100, 7, 0, 0) == 7
    places = [(index, seed, epoch) for index in (4, 5) for seed in (0, 1) for epoch in (0, 1)]
    drawn = [readable(make, 100, *place) for place in places]
    assert len(set(drawn)) > 4
    assert drawn == [readable(make, 100, *place) for place in places]
    assert readable(make, 7, 4) in (0, 1, 2, 3, 6)


@pytest.mark.parametrize("images", [1, 6])
def test_where_no_image_is_left_to_draw_the_search_ends(images):
    def make(index):
        raise SkippedImage(f"{index}.jpg")

    with pytest.raises(ValueError, match=rf"^none of the {images} images here .*; the last one: \d.jpg$"):
        readable(make, images, 0)


def test_unreadable_metadata_warns_once_and_is_counted(tmp_path):
    exif = b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03"
    for number in range(6):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.webp", exif=exif if number % 2 else b"")
    splits = folder(tmp_path)
    with pytest.warns(UnreadableMetadata, match="more such images are only counted") as told:
        passed(of(splits), 0)
    passed(of(splits), 1)
    assert len(told) == 1
    assert splits.problems() == [("train", f"{number}.webp", "unreadable metadata") for number in (1, 3, 5)]


def test_a_folder_with_its_counts_can_be_sent_to_another_process(root):
    images = pickle.loads(pickle.dumps(skipping(root).train))
    with pytest.raises(SkippedImage):
        images[3]
    assert np.array_equal(images[2][0], np.full((3, 16, 16), 20))


@pytest.mark.parametrize(
    "wrong", [{"on_bad_image": "ignore"}, {"bad_image_budget": 0}, {"bad_image_budget": "1%"}, {"bad_image_budget": 2}]
)
def test_wrong_settings_are_refused_by_name(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must"):
        folder(tmp_path, **wrong)
