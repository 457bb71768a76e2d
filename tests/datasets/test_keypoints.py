from __future__ import annotations

import pytest
from dense_files import write_spair
from PIL import Image

from esvit_pl.datasets import spair71k


@pytest.fixture
def spair(tmp_path):
    cat = ("a", Image.new("RGB", (40, 30)), [[1, 2], [30, 20]], [0, 1, 39, 29])
    other = ("b", Image.new("RGB", (20, 50)), [[3, 4], [5, 6]], [2, 2, 18, 40])
    dog = ("c", Image.new("RGB", (10, 10)), [[0, 0]], [0, 0, 9, 9])
    return write_spair(
        tmp_path,
        [
            {"category": "cat", "src": cat, "trg": other},
            {"category": "cat", "src": other, "trg": cat},
            {"category": "dog", "src": dog, "trg": dog},
        ],
    )


def test_pairs_in_the_order_of_the_layout(spair):
    for home in (spair, spair / "SPair-71k"):
        splits = spair71k(home)
        images = [splits.train.name(index) for index in range(len(splits.train))]
        assert images == ["JPEGImages/cat/a.jpg", "JPEGImages/cat/b.jpg", "JPEGImages/dog/c.jpg"]
        first, second, third = splits.pairs
        assert (first.name, first.category) == ("000000-a-b:cat", "cat")
        assert first.source == (0, (30, 40), ((1, 2), (30, 20)), (0, 1, 39, 29))
        assert first.target == second.source == (1, (50, 20), ((3, 4), (5, 6)), (2, 2, 18, 40))
        assert third.source.image == third.target.image == 2
        assert splits.categories == ["cat", "dog"]
        assert splits.describe().endswith("pairs: 3 of split test")


def test_what_is_missing_is_said(spair):
    with pytest.raises(ValueError, match=r"Layout/large/trn.txt' does not exist; unpack SPair-71k.tar.gz"):
        spair71k(spair, split="trn")
    annotation = spair / "SPair-71k/PairAnnotation/test/000000-a-b:cat.json"
    text = annotation.read_text()
    annotation.write_text(text.replace("trg_bndbox", "box"))
    with pytest.raises(ValueError, match=r"000000-a-b:cat.json' must have a category, and imname, imsize, bndbox, kps"):
        spair71k(spair)
    annotation.write_text("{")
    with pytest.raises(ValueError, match="cannot read the annotation"):
        spair71k(spair)
    annotation.write_text(text)
    (spair / "SPair-71k/JPEGImages/dog/c.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 images of test are missing in .*, first JPEGImages/dog/c.jpg"):
        spair71k(spair)
