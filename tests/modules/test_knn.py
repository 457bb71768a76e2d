from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
import toys
from torch import nn
from torch.utils.data import DataLoader

from esvit_pl.metrics import knn_accuracy
from esvit_pl.modules.knn import KNNEvaluator

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
]


class Data(pl.LightningDataModule):
    """Bank and query of three classes, each image a constant plus noise."""

    num_classes, has_labels = 3, True

    def __init__(self, labelled: bool = True) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.labels = torch.arange(40) % 3
        self.images = torch.randn(40, 3, 8, 8, generator=draw) + self.labels[:, None, None, None] - 1
        self.has_labels = labelled

    def loader(self, part: slice) -> DataLoader:
        rows = zip(self.images[part], self.labels[part], strict=True)
        return DataLoader([{"image": x, **({"label": y} if self.has_labels else {})} for x, y in rows], batch_size=7)

    def bank_dataloader(self) -> DataLoader:
        return self.loader(slice(0, 25))

    def val_dataloader(self) -> DataLoader:
        return self.loader(slice(25, 40))

    test_dataloader = val_dataloader


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Dropout(0.5))


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_logs_the_accuracy_of_the_pure_function_for_every_k(tmp_path, verb) -> None:
    data, backbone = Data(), network()
    module = KNNEvaluator(backbone, k=[5, 3])
    (logged,) = getattr(toys.trainer(tmp_path), verb)(module, data, verbose=False)
    with torch.no_grad():
        features = backbone.eval()(data.images)
    expected = knn_accuracy(features[:25], data.labels[:25], features[25:], data.labels[25:], k=[5, 3])
    assert 0.4 < expected[5].top1 < 1
    assert logged == pytest.approx(
        {
            "knn/top1": expected[5].top1,
            "knn/top5": 1.0,
            "knn/k3/top1": expected[3].top1,
            "knn/k3/top5": 1.0,
        }
    )


def test_the_backbone_can_be_trained_afterwards(tmp_path) -> None:
    backbone = toys.backbone()
    assert toys.trainer(tmp_path).validate(KNNEvaluator(backbone, k=3), Data(), verbose=False)[0]["knn/top5"] == 1
    backbone(torch.randn(1, 3, 32, 32)).pooled.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_bad_input(tmp_path) -> None:
    def validate(module: KNNEvaluator, data) -> None:
        toys.trainer(tmp_path).validate(module, data, verbose=False)

    with pytest.raises(ValueError, match="KNNEvaluator needs labels, and the data of Data have none"):
        validate(KNNEvaluator(network()), Data(labelled=False))
    with pytest.raises(
        ValueError, match=r"looks for bank_dataloader\(\) in KNNEvaluator, and found none; give the loader"
    ):
        validate(KNNEvaluator(network()), Data().val_dataloader())
    with pytest.raises(ValueError, match="k of 1 or more, got k=0"):
        KNNEvaluator(network(), k=0)
    with pytest.raises(ValueError, match="temperature above 0"):
        KNNEvaluator(network(), temperature=0)
