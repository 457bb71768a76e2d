from __future__ import annotations

from hashlib import blake2b

import pytest
import torch

from esvit_pl.datasets import ArrayDataset, Joined, Picture, Splits, Subset, split_by_name


def images(n: int, labels: list[int] | None = None) -> ArrayDataset:
    return ArrayDataset(torch.zeros(n, 3, 2, 2, dtype=torch.uint8), [f"{i}.png" for i in range(n)], labels)


def names(dataset) -> set[str]:
    return {dataset.name(i) for i in range(len(dataset))}


def test_an_image_is_in_the_query_if_the_hash_of_its_name_is_below_the_fraction():
    bank, query = split_by_name(images(200), 0.25)
    by_hand = {name for name in names(images(200)) if blake2b(name.encode(), digest_size=8).digest()[0] < 64}
    assert names(query) == by_hand
    assert names(bank) == names(images(200)) - by_hand
    assert 30 < len(query) < 70


def test_an_added_image_moves_no_other():
    _, few = split_by_name(images(100), 0.2)
    _, many = split_by_name(images(150), 0.2)
    assert names(many) & names(images(100)) == names(few)


def test_neither_side_is_ever_empty():
    for fraction in (0.001, 0.999):
        bank, query = split_by_name(images(2), fraction)
        assert len(bank) == len(query) == 1
    with pytest.raises(ValueError, match="two images or more, got 1"):
        split_by_name(images(1), 0.5)


def test_accents_hash_alike_in_both_unicode_forms():
    pixels = torch.zeros(9, 3, 2, 2, dtype=torch.uint8)
    composed, decomposed = (ArrayDataset(pixels, [f"{u}{i}" for i in range(9)]) for u in ("\u00fc", "u\u0308"))
    assert split_by_name(composed, 0.5)[1].indices == split_by_name(decomposed, 0.5)[1].indices


def test_val_is_the_query_where_there_is_one():
    splits = Splits(images(4, [0, 1, 0, 1]), images(2, [1, 0]), ["a", "b"])
    assert splits.bank is splits.train
    assert splits.query is splits.val
    assert splits.describe() == (
        "data: 4 images to train on, 2 classes; bank: the 4 training images, query: the 2 of val"
    )


def test_without_val_the_line_says_how_the_images_are_parted():
    splits = Splits(images(50, list(range(50))))
    assert len(splits.bank) + len(splits.query) == 50
    assert splits.query.labels == [int(splits.query.name(i)[:-4]) for i in range(len(splits.query))]
    assert f"k-NN compares {len(splits.query)} of them (query), chosen by their names" in splits.describe()


def test_an_image_that_is_decoded_opens_as_it_is():
    data = Subset(images(3, [5, 6, 7]), [2, 1])
    picture = data.open(0)
    assert (picture.size, picture.label) == ((2, 2), 7)
    assert torch.equal(picture.decode(8), data[0][0])


def test_a_subset_opens_what_its_data_set_opens():
    class Scaled(ArrayDataset):
        def open(self, index):
            return Picture((16, 16), index, lambda reduction: torch.full((3, 1, 1), reduction))

    picture = Subset(Scaled(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), list("abcd")), [3]).open(0)
    assert (picture.size, picture.label, int(picture.decode(4)[0])) == ((16, 16), 3, 4)


def test_bad_input():
    with pytest.raises(ValueError, match="val_fraction must lie between 0 and 1, got 1"):
        Splits(images(2), val_fraction=1)
    with pytest.raises(ValueError, match="the train split holds no image"):
        Splits(images(0))
    with pytest.raises(ValueError, match="train and val must both have labels, or neither"):
        Splits(images(2, [0, 1]), images(2))
    with pytest.raises(ValueError, match=r"must be uint8 \(n 3 h w\), got torch.float32 \(1, 3, 2, 2\)"):
        ArrayDataset(torch.zeros(1, 3, 2, 2), ["a"])
    with pytest.raises(ValueError, match="same length, got 1 images, 2 names, no labels"):
        ArrayDataset(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), ["a", "b"])


# -- three splits, and several classes in an image


def test_with_a_test_the_query_is_the_test_and_the_bank_all_the_rest():
    splits = Splits(images(4, [0, 1, 0, 1]), images(3, [1, 0, 1]), ["a", "b"], test=images(2, [1, 1]))
    assert isinstance(splits.bank, Joined)
    assert [splits.bank.name(i) for i in range(7)] == ["0.png", "1.png", "2.png", "3.png", "0.png", "1.png", "2.png"]
    assert splits.bank.labels == [0, 1, 0, 1, 1, 0, 1]
    assert splits.bank[6][1] == splits.bank.open(6).label == 1
    assert splits.query is splits.test
    assert splits.tuned_from == 4
    assert splits.describe() == (
        "data: 4 images to train on, 2 classes; bank: the 4 training images and the 3 of val, on which settings "
        "are chosen; query: the 2 of test"
    )
    two = Splits(images(4, [0, 1, 0, 1]), classes=["a", "b"], test=images(2, [1, 1]))
    assert two.bank is two.train
    assert two.tuned_from is None


def test_an_image_can_belong_to_several_classes():
    rows = [[1, 0, 1], [0, 1, -1], [0, 0, 0]]
    data = images(3, rows)
    assert (data.labels, data.has_labels) == (None, True)
    assert data[1][1].tolist() == data.open(1).label.tolist() == [0, 1, -1]
    assert Subset(data, [2, 0]).memberships.tolist() == [[0, 0, 0], [1, 0, 1]]
    splits = Splits(data, data, ["a", "b", "c"], metric="map11")
    assert splits.multi_label
    assert "3 classes, several in an image;" in splits.describe()
    assert Splits(data, data, ["a", "b", "c"], test=data, metric="map11").bank.memberships.tolist() == rows * 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: images(1, [[0, 2]]), r"memberships must be 1, 0 or -1 \(unknown\), got \[0 2\]"),
        (lambda: Splits(images(1, [[0, 1]]), images(1, [0])), "train and val must both have one class an image"),
        (lambda: Splits(images(1, [[0, 1]])), "memberships in several classes and metric=map11 go together, got"),
        (lambda: Splits(images(1, [0]), metric="map11"), "memberships in several classes and metric=map11 go together"),
        (lambda: Splits(images(1, [[0, 1]]), metric="map11"), "in 2 classes need classes= with as many names, got 0"),
        (lambda: Splits(images(1, [0]), test=images(0, [])), "the test split holds no image"),
    ],
)
def test_splits_that_do_not_fit(make, said):
    with pytest.raises(ValueError, match=said):
        make()
