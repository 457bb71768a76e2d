from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import default_collate

from esvit_pl.data import batch_size_of, limited
from esvit_pl.data.loaders import stack


def test_images_are_stacked_as_torch_does_and_a_view_without_a_mask_keeps_none():
    items = [
        {"views": [torch.full((3, 4, 4), float(i)), torch.zeros(3, 2, 2)], "index": i, "label": 1} for i in range(3)
    ]
    masks = [torch.eye(2, dtype=torch.bool), None]
    batch = stack([{**item, "masks": masks} for item in items])
    whole, nothing = batch.pop("masks")
    assert whole.shape == (3, 2, 2)
    assert nothing is None
    for name, value in default_collate(items).items():
        pairs = zip(value, batch[name], strict=True) if isinstance(value, list) else [(value, batch[name])]
        assert all(torch.equal(theirs, ours) for theirs, ours in pairs)


def test_the_batch_size_of_any_loader():
    assert batch_size_of(SimpleNamespace(batch_size=4)) == 4
    assert batch_size_of(SimpleNamespace(batch_size=None, batch_sampler=SimpleNamespace(batch_size=8))) == 8
    with pytest.raises(ValueError, match="the learning rate needs the batch size, and list does not tell it"):
        batch_size_of([])


def test_batches_of_a_limited_epoch():
    assert [limited(10, limit) for limit in (None, 1.0, 0.25, 3, 30)] == [10, 10, 2, 3, 10]
