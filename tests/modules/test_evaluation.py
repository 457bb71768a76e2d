"""Evaluators under a Trainer say what they say elsewhere, and what LinearProbe says."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import toys
from torch.utils.data import DataLoader

from esvit_pl.augment import Recipe
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.evaluation import KNN, Baselines, Evaluator, Linear, RawPixels
from esvit_pl.modules import Evaluation, KNNEvaluator, LinearProbe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
]


def data(batch_size: int = 8) -> ImageDataModule:
    noise = torch.Generator().manual_seed(0)

    def images(number: int) -> ArrayDataset:
        labels = [index % 3 for index in range(number)]
        pixels = torch.randint(0, 200, (number, 3, 16, 16), generator=noise, dtype=torch.uint8)
        for pixel, label in zip(pixels, labels, strict=True):
            pixel[label] += 8
        return ArrayDataset(pixels, [str(index) for index in range(number)], labels)

    recipe = Recipe(eval_resize=16, eval_crop=16, supervised_size=16)
    splits = Splits(images(37), images(29))
    options = {"batch_size": batch_size, "eval_batch_size": 10, "num_workers": 0}
    return ImageDataModule(splits, recipe, train="supervised", **options)


@pytest.mark.parametrize(
    ("precision", "accumulate"), [("32-true", 1), ("32-true", 2), ("64-true", 1), ("bf16-mixed", 1), ("bf16-true", 1)]
)
def test_a_linear_evaluator_ends_with_the_numbers_of_a_linear_probe_to_the_last_bit(tmp_path, precision, accumulate):
    backbone, settings = toys.backbone(), {"last_blocks": 2, "lr": [0.1, 3.0, 100.0]}
    options = {"precision": precision, "accumulate_grad_batches": accumulate}
    torch.manual_seed(3)
    probe = LinearProbe(backbone, 3, **settings, seed=3)
    toys.trainer(tmp_path, max_epochs=3, limit_val_batches=0, **options).fit(probe, data())
    (expected,) = toys.trainer(tmp_path, **options).validate(probe, data(), verbose=False)
    trained: list[Any] = []

    class Witness(Linear):
        def train(self, *args: Any) -> Any:
            trained.append(super().train(*args))
            return trained[-1]

    state = torch.get_rng_state()
    module = Evaluation(backbone, Witness(**settings, epochs=3, seed=3))
    (got,) = toys.trainer(tmp_path, **options).validate(module, data(), verbose=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert toys.largest_difference(toys.state(trained[0][0]), toys.state(probe.candidates)) == 0
    assert got == expected
    assert len({value for name, value in got.items() if name.startswith("linear/lr")}) > 1
    backbone.train()(torch.randn(1, 3, 16, 16, dtype=next(backbone.parameters()).dtype)).pooled.sum().backward()


def test_baselines_give_every_row_the_same_probe(tmp_path):
    learnt, other = toys.backbone(), toys.backbone()
    probes = {"knn": KNN(k=3), "linear": Linear(last_blocks=1, lr=3.0, epochs=2)}
    rows = {"raw_pixels": RawPixels(8), "untrained": other}
    trainer = toys.trainer(tmp_path)
    (together,) = trainer.validate(Evaluation(learnt, Baselines(probes, rows)), data(), verbose=False)
    for row, encoder in {"pretrained": learnt, **rows}.items():
        for name, probe in probes.items():
            (alone,) = trainer.validate(Evaluation(encoder, probe), data(), verbose=False)
            assert together[f"{name}/{row}"] == alone[f"{name}/top1"]
    assert len([name for name in together if name.rpartition("/")[2] in ("pretrained", *rows)]) == 6
    assert len(set(together.values())) > 2
    fewer = Baselines({"knn": KNN(k=3)}, rows, alone={"linear": probes["linear"]}, together=True)
    (once,) = trainer.validate(Evaluation(learnt, fewer), data(), verbose=False)
    assert once.items() <= together.items()
    assert "linear/pretrained" in once
    assert "linear/untrained" not in once
    assert fewer.metrics == {"knn": "knn/top1", "linear": "linear/top1"}


def test_the_k_nn_evaluator_is_the_evaluation_of_k_nn(tmp_path):
    backbone, trainer = toys.backbone(), toys.trainer(tmp_path)
    (one,) = trainer.validate(KNNEvaluator(backbone, k=[5, 2]), data(), verbose=False)
    (two,) = trainer.validate(Evaluation(backbone, KNN(k=[5, 2])), data(), verbose=False)
    assert one == two


class Width(Evaluator):
    """Somebody else's: needs nothing but the method."""

    def run(self, encoder: Any, data: Any) -> dict[str, float]:
        return {"width": float(data.features(encoder, "query").features.shape[1])}


class Loaders(pl.LightningDataModule):
    """A foreign project's: tuples, no training images."""

    def bank_dataloader(self) -> DataLoader:
        return DataLoader([(torch.ones(3, 4, 4), 1)] * 3, batch_size=2)

    val_dataloader = bank_dataloader


def test_an_evaluator_of_somebody_elses_on_data_of_somebody_elses(tmp_path):
    module = Evaluation(RawPixels(side=2), Width())
    assert toys.trainer(tmp_path).validate(module, Loaders(), verbose=False) == [{"width": 12.0}]
    with pytest.raises(ValueError, match="Evaluation looks for train_dataloader|num_classes of 2 or more, got None"):
        toys.trainer(tmp_path).validate(Evaluation(RawPixels(), Linear()), Loaders(), verbose=False)
