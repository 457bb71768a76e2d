from __future__ import annotations

import numpy as np
import pytest
import torch
from dense_files import VOID, blocks, write_ade, write_voc
from PIL import Image
from torchvision.datasets import VOCSegmentation

from esvit_pl.datasets import ade20k, voc2012


@pytest.fixture
def voc(tmp_path):
    masks = {"train": [blocks(0), blocks(1), blocks(2)], "val": [blocks(3)]}
    masks["val"][0][0, 0] = VOID
    return write_voc(tmp_path, masks)


def test_voc_is_what_torchvision_reads(voc):
    splits = voc2012(voc)
    for part, name in ((splits.bank, "train"), (splits.query, "val")):
        theirs = VOCSegmentation(str(voc), year="2012", image_set=name)
        assert len(part) == len(theirs)
        for index in range(len(part)):
            image, mask = theirs[index]
            assert torch.equal(part[index][0], torch.from_numpy(np.array(image)).permute(2, 0, 1))
            assert torch.equal(part.mask(index), torch.from_numpy(np.array(mask)))
    assert splits.query.mask(0)[0, 0] == VOID
    assert splits.query.name(0) == "VOCdevkit/VOC2012/JPEGImages/2007_val00.jpg"
    assert (len(splits.mask_classes), splits.mask_classes[:2]) == (21, ("background", "aeroplane"))
    assert splits.describe() == (
        "data: 3 images to train on, no labels; bank: the 3 training images, query: the 1 of val\nmasks: 21 classes"
    )


def test_ade_counts_classes_from_one_and_zero_is_void(tmp_path):
    mask = blocks(0)
    mask[1, 2] = VOID
    root = write_ade(tmp_path, {"training": [mask, blocks(1)], "validation": [blocks(2)]}, cell=1)
    for home in (root, root / "ADEChallengeData2016"):
        splits = ade20k(home)
        assert torch.equal(splits.bank.mask(0), torch.from_numpy(mask))
        assert torch.equal(splits.query.mask(0), torch.from_numpy(blocks(2)))
    file = Image.open(root / "ADEChallengeData2016/annotations/training/ADE_train_00000001.png")
    assert np.array(file)[1, 2] == 0
    assert (len(splits.mask_classes), splits.mask_classes[0], splits.mask_classes[149]) == (150, "thing1", "thing150")
    (root / "ADEChallengeData2016/objectInfo150.txt").unlink()
    assert ade20k(root).mask_classes[0] == "class_1"


def test_what_is_missing_is_said(tmp_path, voc):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"VOC 2012 is not in .*Unpack VOCtrainval_11-May-2012.tar there"):
        voc2012(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"holds no images/training/\*.jpg; unpack ADEChallengeData2016.zip"):
        ade20k(tmp_path / "empty")
    (voc / "VOCdevkit/VOC2012/SegmentationClass/2007_train01.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 files are missing in .*, first .*2007_train01.png"):
        voc2012(voc)


def test_a_mask_of_colours_is_refused(voc):
    path = voc / "VOCdevkit/VOC2012/SegmentationClass/2007_val00.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(ValueError, match=r"2007_val00.png' has Pillow's mode RGB; it must hold a class number"):
        voc2012(voc).query.mask(0)
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot read the mask '.*2007_val00.png'"):
        voc2012(voc).query.mask(0)
