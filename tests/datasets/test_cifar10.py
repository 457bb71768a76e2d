from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from esvit_pl.datasets import cifar10


def test_pixels_labels_and_classes(monkeypatch):
    def fake(root, train, download):
        data = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
        return SimpleNamespace(data=data, targets=[3, 0] if train else [1, 1], classes=["a", "b", "c", "d"])

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fake)
    splits = cifar10("anywhere")
    image, label = splits.train[0]
    assert label == 3
    assert image[:, 0, 1].tolist() == [3, 4, 5]  # red, green, blue of the second pixel
    assert splits.query.labels == [1, 1]
    assert splits.classes == ["a", "b", "c", "d"]
    assert splits.train.name(1) == "train/00001"
    assert torch.equal(pickle.loads(pickle.dumps(splits.train))[1][0], splits.train[1][0])


def test_missing_files_are_an_error_that_says_where_they_belong(tmp_path):
    with pytest.raises(ValueError, match=r"not complete in .*download=False.*cifar-10-batches-py"):
        cifar10(tmp_path, download=False)
