from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import foreign
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import toys
from foreign import BANK, IMAGES, LABELS, QUERY, fit, loader
from torch import Tensor
from torch.utils.data import DataLoader

from esvit_pl.augment import Recipe
from esvit_pl.callbacks import OnlineLinear
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.evaluation.linear import LinearHeads, learn_

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
    pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode"),
]


def probe(**options: Any) -> OnlineLinear:
    query = loader(QUERY, shuffle=True)
    return OnlineLinear(
        **{"features": "net.trunk", "query": query, "num_classes": 3, "unpack": foreign.unpack, "lr": 20.0, **options}
    )


class Watch(pl.Callback):
    """Keeps what a step returned, and the query's features after every epoch."""

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.query: Tensor | None = None

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append((outputs["embedding"].clone(), foreign.unpack(batch)[1]))

    def on_train_end(self, trainer: Any, module: Any) -> None:
        with torch.no_grad():
            self.query = module.net["trunk"].eval()(IMAGES[QUERY])


def trained(heads: LinearHeads, steps: list[tuple[Tensor, Tensor]]) -> LinearHeads:
    for features, labels in steps:
        learn_([heads], [features], labels)
    return heads


@pytest.mark.parametrize("kind", [foreign.DictOfEverything, foreign.DictByHand])
def test_learns_from_what_the_step_returned_and_measures_eval_features(tmp_path, kind) -> None:
    callback, watch = probe(), Watch()
    trainer = fit(foreign.make(kind), tmp_path, callback, watch)
    (mine,) = callback.heads
    torch.manual_seed(0)
    again = LinearHeads(5, 3, [20.0])
    again.load_state_dict(initial_weights())
    trained(again, watch.steps)
    assert all(torch.equal(p, q) for p, q in zip(mine.parameters(), again.parameters(), strict=True))
    expected = (again(watch.query)[0].argmax(1) == LABELS[QUERY]).float().mean().item()
    assert expected > 1 / 3
    assert trainer.callback_metrics["linear/top1"].item() == pytest.approx(expected)
    assert trainer.callback_metrics["linear/top5"].item() == 1
    assert list(callback.last) == ["linear/top1", "linear/top5"]


def initial_weights() -> dict[str, Tensor]:
    """Those of a probe that has not learnt: they depend on its seed alone."""
    callback = probe()
    callback._make_heads(torch.nn.Module(), [torch.zeros(1, 5)])
    return callback.heads[0].state_dict()


def test_initial_weights_are_a_function_of_the_seed_and_draw_nothing() -> None:
    before = torch.get_rng_state()
    first = initial_weights()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    assert torch.equal(initial_weights()["heads.0.weight"], first["heads.0.weight"])
    other = probe(seed=1)
    other._make_heads(torch.nn.Module(), [torch.zeros(1, 5)])
    assert not torch.equal(other.heads[0].heads[0].weight, first["heads.0.weight"])


def test_runs_the_network_in_eval_mode_where_the_step_returns_no_embedding(tmp_path) -> None:
    seen: list[tuple[bool, int]] = []

    class Spied(foreign.Scalar):
        def look(self, x: Tensor) -> Tensor:
            seen.append((self.training, len(x)))
            return self.net["trunk"](x)

    fit(foreign.make(Spied), tmp_path, probe(features="look"), max_epochs=1)
    assert seen == [(False, 6), (False, 6), (False, 3), (False, 6), (False, 3)]  # 15 of training, 9 of the query
    seen.clear()
    step = foreign.DictOfEverything.training_step
    fit(foreign.make(type("Spied", (Spied,), {"training_step": step})), tmp_path, probe(features="look"), max_epochs=1)
    assert seen == [(False, 6), (False, 3)]
    seen.clear()
    asked = type("Spied", (Spied,), {"training_step": step})
    fit(foreign.make(asked), tmp_path, probe(features="look", embedding=None), max_epochs=1)
    assert len(seen) == 5


def test_several_features_and_learning_rates_side_by_side(tmp_path) -> None:
    named = {"trunk": "net.trunk", "pixels": lambda x: x}
    callback = probe(features=named, lr=[0.1, 20.0], prefix="mine")
    fit(foreign.make(foreign.DictOfEverything), tmp_path, callback)
    names = [f"mine/{feature}/lr{lr}/top1" for feature in named for lr in ("0.1", "20")]
    assert list(callback.last) == ["mine/top1", "mine/top5", *names, "mine/best_lr"]
    alone = probe(features=named["pixels"], embedding=None)
    fit(foreign.make(foreign.DictOfEverything), tmp_path, alone)
    assert callback.last["mine/pixels/lr20/top1"] == alone.last["linear/top1"]
    both = [callback.heads[1].heads[1], alone.heads[0].heads[0]]
    assert torch.equal(both[0].weight, both[1].weight)
    assert callback.heads[1].heads[0].weight.abs().max() < both[0].weight.abs().max()


def test_resumes_bit_for_bit(tmp_path) -> None:
    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    def module() -> Any:
        return foreign.make(foreign.Exact)

    options = {"precision": "64-true", "max_epochs": 3}
    whole, resumed = (probe(unpack=lambda batch: (batch[0].double(), batch[1]), lr=[1.0, 20.0]) for _ in range(2))
    ordered = {"train_dataloader": lambda: loader(BANK)}
    first, second = module(), module()
    first.__dict__.update(ordered)
    second.__dict__.update(ordered)
    fit(first, tmp_path, whole, Save(), **options)
    fit(second, tmp_path, resumed, ckpt_path=tmp_path / "first.ckpt", **options)
    assert toys.largest_difference(toys.state(first), toys.state(second)) == 0
    saved, again = whole.state_dict(), resumed.state_dict()
    assert saved["last"] == again["last"]
    assert toys.largest_difference(saved["heads"][0]["heads"], again["heads"][0]["heads"]) == 0
    for index, state in saved["heads"][0]["optimizer"]["state"].items():
        other = again["heads"][0]["optimizer"]["state"][index]["momentum_buffer"]
        assert torch.equal(state["momentum_buffer"], other)
    checkpoint = torch.load(tmp_path / "first.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == first.state_dict().keys()
    idle = probe()
    idle.load_state_dict(checkpoint["callbacks"]["OnlineLinear[linear]"])
    assert idle.state_dict()["heads"] == checkpoint["callbacks"]["OnlineLinear[linear]"]["heads"]  # nothing is lost


def test_l2_gives_every_feature_the_same_length() -> None:
    scaled = probe(normalize="l2")._scaled(torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.1]]))
    torch.testing.assert_close(scaled, torch.tensor([[1.2, 1.6, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]))


def test_every_other_epoch_and_the_last(tmp_path) -> None:
    measured: list[int] = []

    class Note(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if callback.last:
                measured.append(trainer.current_epoch)
                callback.last = {}

    callback = probe(every_n_epochs=2)
    fit(foreign.make(foreign.Scalar), tmp_path, callback, Note(), max_epochs=5)
    assert measured == [1, 3, 4]


def test_the_pretrainer_needs_no_argument_but_a_data_module(tmp_path) -> None:
    rows = [{"image": torch.full((3, 16, 16), float(i % 3)), "label": i % 3} for i in range(9)]

    class Data(pl.LightningDataModule):
        num_classes, has_labels = 3, True

        def train_dataloader(self) -> DataLoader:
            return toys.loader(16, 8)

        def query_dataloader(self) -> DataLoader:
            return DataLoader(rows, batch_size=4)

    callback = OnlineLinear()
    both = OnlineLinear({"teacher": "teacher.backbone", "student": "student.backbone"}, prefix="both")
    trainer = toys.trainer(tmp_path, callbacks=[callback, both], max_epochs=1)
    trainer.fit(toys.pretrainer(), Data())
    assert trainer.callback_metrics["linear/top1"] == pytest.approx(callback.last["linear/top1"])
    assert callback.heads[0].heads[0].weight.dtype == torch.float32
    assert "both/student/lr0.03/top1" in trainer.callback_metrics  # from the first view of the batch


class Unhurried(OnlineLinear):
    """Its steps, after the first one, wait for no GPU."""

    def on_train_batch_end(self, *args: Any) -> None:
        with toys.NoWait() if self.heads else nullcontext():
            super().on_train_batch_end(*args)


@pytest.mark.filterwarnings("ignore:.*no `validation_step`.*")
def test_learns_nothing_from_the_labels_of_the_query(tmp_path) -> None:
    """Pretraining uses all images where there is no val; their labels must not help to classify themselves."""
    names = [f"{i}.png" for i in range(24)]
    size = {"global_size": 32, "local_size": 16, "num_local": 2, "eval_resize": 32, "eval_crop": 32}

    def run(wrong: str | None) -> LinearHeads:
        labels = (torch.arange(24) % 3).tolist()
        if wrong:
            for i in getattr(Splits(arrays(names, labels), val_fraction=0.3), wrong).indices:
                labels[i] = (labels[i] + 1) % 3
        splits = Splits(arrays(names, labels), val_fraction=0.3)
        callback = Unhurried(num_classes=3)
        trainer = toys.trainer(tmp_path, callbacks=[callback], max_epochs=1)
        trainer.fit(toys.pretrainer(), ImageDataModule(splits, Recipe(**size), batch_size=8, num_workers=0))
        return callback.heads[0]

    right, query, bank = run(None), run("query"), run("bank")
    assert all(torch.equal(p, q) for p, q in zip(right.parameters(), query.parameters(), strict=True))
    assert not torch.equal(right.heads[0].weight, bank.heads[0].weight)


def arrays(names: list[str], labels: list[int]) -> ArrayDataset:
    images = torch.randint(0, 256, (len(names), 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return ArrayDataset(images.to(torch.uint8), names, labels)


def test_in_bfloat16_the_heads_are_float32(tmp_path) -> None:
    callback = probe()
    fit(foreign.make(foreign.Scalar), tmp_path, callback, max_epochs=1, precision="bf16-mixed")
    assert callback.heads[0].heads[0].weight.dtype == torch.float32
    assert 0 < callback.last["linear/top1"] <= 1


class OtherEmbedding(foreign.Scalar):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        result = self.result(batch)
        rows = self.many * len(result["label"])
        return {**result, "embedding": F.pad(result["embedding"], (0, 2)).repeat(self.many, 1)[:rows]}

    many = 1


def test_errors_say_what_was_found(tmp_path) -> None:
    def scalar() -> Any:
        return foreign.make(foreign.Scalar)

    with pytest.raises(ValueError, match="OnlineLinear needs num_classes of 2 or more, got None; give it, or a data"):
        fit(scalar(), tmp_path, probe(num_classes=None))
    with pytest.raises(ValueError, match="features='net.body', and Scalar.net has no attribute 'body'"):
        fit(scalar(), tmp_path, probe(features="net.body"))
    with pytest.raises(ValueError, match=r"looks for query_dataloader\(\) in Scalar"):
        fit(scalar(), tmp_path, probe(query="query"))
    with pytest.raises(ValueError, match="num_classes=2 and needs labels from 0 to 1, or -1 for none, got 0 to 2"):
        fit(scalar(), tmp_path, probe(num_classes=2))
    with pytest.raises(ValueError, match="needs labels, and neither the step's outputs nor the batch has any; give"):
        fit(scalar(), tmp_path, probe(unpack=lambda batch: (batch[0], None)))
    with pytest.raises(ValueError, match="learns from features of 7 channels, and features='net.trunk' gives 5"):
        fit(foreign.make(OtherEmbedding), tmp_path, probe())
    twice = type("Twice", (OtherEmbedding,), {"many": 2})
    with pytest.raises(ValueError, match=r"labels of shape \(6,\) for features of shape \(12, 7\); set embedding=None"):
        fit(foreign.make(twice), tmp_path, probe())
    with pytest.raises(ValueError, match="one query image or more, got none"):
        fit(scalar(), tmp_path, probe(query=[]))
    for options, message in (
        ({"every_n_epochs": 0}, "every_n_epochs of 1 or more, got 0"),
        ({"normalize": "batch"}, "normalize 'l2' or None, got 'batch'"),
        ({"momentum": 1.0}, "momentum of 0 or more and below 1, got 1.0"),
        ({"lr": [0.1, 0.1]}, "several different ones, above 0"),
        ({"features": {}}, "one feature or more, got an empty dict"),
    ):
        with pytest.raises(ValueError, match=message):
            probe(**options)


def test_a_checkpoint_of_other_features_is_refused(tmp_path) -> None:
    callback, other = probe(), probe(features={"a": "net.trunk", "b": "net.trunk"})
    fit(foreign.make(foreign.Scalar), tmp_path, callback, max_epochs=1)
    other.load_state_dict(callback.state_dict())
    with pytest.raises(ValueError, match="has 2 features, and the checkpoint to resume has heads for 1"):
        fit(foreign.make(foreign.Scalar), tmp_path, other, max_epochs=1)
