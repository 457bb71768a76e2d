from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from esvit_pl.callbacks import parts
from esvit_pl.callbacks.parts import (
    check_interval,
    features_on_trainer,
    find_loader,
    find_part,
    is_due,
    named_parts,
    unpack_first_view,
)
from esvit_pl.data import RankShare


class Precision:
    def forward_context(self) -> Any:
        return nullcontext()

    def convert_input(self, x: Any) -> Any:
        return x


class Strategy:
    root_device = torch.device("cpu")


class Trainer:
    """What `features_on_trainer` needs of one."""

    precision_plugin, strategy = Precision(), Strategy()


EVERYTHING = TensorDataset(torch.arange(11.0)[:, None], torch.arange(11))


@pytest.mark.parametrize(
    ("loader", "twice"),
    [
        (lambda rank: DataLoader(EVERYTHING, batch_size=4), []),
        (lambda rank: DataLoader(EVERYTHING, batch_size=40), []),  # one batch: the second rank has none
        (lambda rank: DataLoader(EVERYTHING, batch_size=4, sampler=RankShare(11, rank=rank, ranks=2)), []),
        (lambda rank: DataLoader(EVERYTHING, sampler=DistributedSampler(EVERYTHING, 2, rank, shuffle=False)), [0]),
    ],
    ids=["plain", "one_batch", "rank_share", "distributed_sampler_pads"],
)
def test_two_ranks_see_every_image_once_whoever_deals_them(monkeypatch, loader, twice) -> None:
    seen: list[int] = []
    for rank in (0, 1):
        monkeypatch.setattr(parts, "num_ranks", lambda: 2)
        monkeypatch.setattr(parts, "rank", lambda rank=rank: rank)
        features, labels = features_on_trainer(Trainer(), lambda x: x, loader(rank))
        assert features.flatten().tolist() == labels.tolist()
        seen += labels.tolist()
    assert sorted(seen) == sorted([*range(11), *twice])


def test_find_part() -> None:
    module = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(2, 2)})})
    assert find_part("X", module, "a.b") is module["a"]["b"]
    assert find_part("X", module, len) is len
    with pytest.raises(ValueError, match="X looks for features='a.c', and ModuleDict.a has no attribute 'c'; it has b"):
        find_part("X", module, "a.c")


def test_find_loader_looks_in_the_data_module_first() -> None:
    class Owner:
        def __init__(self, name: str) -> None:
            self.name = name

        def bank_dataloader(self) -> list[str]:
            return [self.name]

    class WithData:
        datamodule = Owner("data module")

    class Without:
        datamodule = None

    assert find_loader("X", WithData(), Owner("module"), "bank")() == ["data module"]
    assert find_loader("X", Without(), Owner("module"), "bank")() == ["module"]
    assert find_loader("X", Without(), None, [1, 2])() == [1, 2]
    with pytest.raises(ValueError, match=r"looks for val_dataloader\(\) in Owner, and found bank_dataloader; name one"):
        find_loader("X", Without(), Owner("module"), "val")


def test_a_batch_of_this_rank_is_not_shared(monkeypatch) -> None:
    monkeypatch.setattr(parts, "num_ranks", lambda: 2)
    monkeypatch.setattr(parts, "rank", lambda: 1)
    batch = [torch.arange(3.0)[:, None], torch.arange(3)]
    assert features_on_trainer(Trainer(), lambda x: x, [batch], share=False).labels.tolist() == [0, 1, 2]
    assert features_on_trainer(Trainer(), lambda x: x, [batch]).labels.tolist() == []


def test_named_parts() -> None:
    assert named_parts("X", "a.b") == {None: "a.b"}
    assert named_parts("X", {"one": "a", "two": len}) == {"one": "a", "two": len}
    with pytest.raises(ValueError, match="X needs one feature or more, got an empty dict"):
        named_parts("X", {})


@pytest.mark.parametrize(("every", "last", "due"), [(1, 5, [0, 1, 2, 3, 4]), (2, 5, [1, 3, 4]), (9, -1, [8])])
def test_is_due(every, last, due) -> None:
    class AtEpoch:
        max_epochs = last

        def __init__(self, epoch: int) -> None:
            self.current_epoch = epoch

    assert [epoch for epoch in range(last if last > 0 else 12) if is_due(AtEpoch(epoch), every)] == due
    with pytest.raises(ValueError, match="X needs every_n_epochs of 1 or more, got 0"):
        check_interval("X", 0)


def test_unpack_first_view() -> None:
    first, second, label = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1, 2])
    assert unpack_first_view({"views": [first, second], "label": label}) == (first, label)
    assert unpack_first_view({"views": [first, second]}) == (first, None)
    assert unpack_first_view({"image": second, "label": label, "views": [first]}) == (second, label)
    assert unpack_first_view((second, label)) == (second, label)
