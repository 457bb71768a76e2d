from __future__ import annotations

import copy
import math

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import toys
from torch.utils.data import DataLoader

from esvit_pl.modules.linear import LinearProbe, fingerprint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
]
BATCH = 8


class Data(pl.LightningDataModule):
    """32 training and 12 validation images of three classes; the same order in every epoch."""

    num_classes, has_labels = 3, True

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.labels = torch.arange(44) % 3
        self.images = torch.randn(44, 3, 16, 16, generator=draw) + self.labels[:, None, None, None] - 1

    def loader(self, part: slice) -> DataLoader:
        rows = zip(self.images[part], self.labels[part], strict=True)
        return DataLoader([{"image": x, "label": y} for x, y in rows], batch_size=BATCH)

    def train_dataloader(self) -> DataLoader:
        return self.loader(slice(0, 32))

    def val_dataloader(self) -> DataLoader:
        return self.loader(slice(32, 44))


def probe(**options) -> LinearProbe:
    """The same backbone and the same initial head at every call."""
    torch.manual_seed(0)
    return LinearProbe(toys.backbone(), 3, **{"last_blocks": 2, "lr": 3.0, **options})


def fit(module: LinearProbe, root, epochs: int = 3, ckpt_path=None, **options) -> pl.Trainer:
    trainer = toys.trainer(root, max_epochs=epochs, **options)
    trainer.fit(module, Data(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


class SaveSecondEpoch(pl.Callback):
    def __init__(self, path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer, module) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


def test_trains_as_the_recipe_written_out_by_hand(tmp_path) -> None:
    data, module = Data(), probe()
    head, velocity = copy.deepcopy(module.heads[0]), [torch.zeros_like(p) for p in module.heads[0].parameters()]
    with torch.no_grad():
        features = module.backbone.last_blocks(data.images, 2)
    for epoch in range(3):
        lr = 3.0 * BATCH / 256 * 0.5 * (1 + math.cos(math.pi * epoch / 3))
        for rows in torch.arange(32).split(BATCH):
            loss = F.cross_entropy(head(features[rows]), data.labels[rows])
            for p, v, grad in zip(
                head.parameters(), velocity, torch.autograd.grad(loss, [*head.parameters()]), strict=True
            ):
                v.mul_(0.9).add_(grad)
                p.data.sub_(lr * v)
    trainer = fit(module, tmp_path)
    for mine, theirs in zip(module.heads[0].parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    right = (head(features[32:]).argmax(1) == data.labels[32:]).float().mean().item()
    assert right > 0.4
    assert trainer.callback_metrics["linear/top1"].item() == pytest.approx(right)
    assert trainer.callback_metrics["linear/top5"].item() == 1.0


def test_several_heads_end_as_each_alone_and_the_best_is_reported(tmp_path) -> None:
    together = probe(lr=[0.001, 3.0])
    metrics = fit(together, tmp_path).callback_metrics
    for head, lr in zip(together.heads, [0.001, 3.0], strict=True):
        alone = probe(lr=lr)
        accuracy = fit(alone, tmp_path).callback_metrics["linear/top1"]
        assert all(torch.equal(a, b) for a, b in zip(head.parameters(), alone.heads[0].parameters(), strict=True))
        assert metrics[f"linear/lr{lr:g}/top1"] == accuracy
    assert metrics["linear/top1"] == max(metrics["linear/lr0.001/top1"], metrics["linear/lr3/top1"])
    assert metrics["linear/lr3/top1"] != metrics["linear/lr0.001/top1"]
    assert metrics["linear/best_lr"] == 3.0


def test_numbers_of_blocks_are_tried_side_by_side(tmp_path) -> None:
    together = probe(last_blocks=[1, 2], lr=[1.0, 3.0])
    metrics = fit(together, tmp_path).callback_metrics
    for head, choice in zip(together.heads, together.candidates.choices, strict=True):
        alone = probe(last_blocks=choice.blocks, lr=choice.lr)
        fit(alone, tmp_path)
        for mine, other in zip(head.parameters(), alone.heads[0].parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
    names = {f"linear/blocks{n}/lr{lr:g}/top1" for n in (1, 2) for lr in (1, 3)}
    assert names <= metrics.keys()
    assert metrics["linear/top1"] == max(metrics[name] for name in names)  # nothing is held out: best on the query


def test_poolings_are_tried_side_by_side_and_resumed(tmp_path) -> None:
    """A Swin has two: the pooled feature, which is the mean of the regions, and their largest values."""
    together = probe(pooling=["pooled", "mean", "max"])
    metrics = fit(together, tmp_path, callbacks=[SaveSecondEpoch(tmp_path / "second.ckpt")]).callback_metrics
    assert [choice.pooling for choice in together.candidates.choices] == ["pooled", "max"]
    for head, choice in zip(together.heads, together.candidates.choices, strict=True):
        alone = probe(pooling=choice.pooling)
        fit(alone, tmp_path)
        for mine, other in zip(head.parameters(), alone.heads[0].parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
    assert {"linear/pooled/lr3/top1", "linear/max/lr3/top1", "linear/best_pooling"} <= metrics.keys()
    resumed = probe(pooling=["pooled", "mean", "max"])
    fit(resumed, tmp_path, ckpt_path=tmp_path / "second.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(resumed.heads.parameters(), together.heads.parameters(), strict=True))
    with pytest.raises(ValueError, match="pooling: checkpoint .'pooled', 'mean', 'max'., now None"):
        fit(probe(), tmp_path, ckpt_path=tmp_path / "second.ckpt")


class HoldsOut(Data):
    """Says which images are held out: the last two of each eight; and numbers the training images."""

    def train_dataloader(self) -> DataLoader:
        rows = zip(self.images[:32], self.labels[:32], range(32), strict=True)
        return DataLoader([{"image": x, "label": y, "index": i} for x, y, i in rows], batch_size=BATCH)

    def hold_out(self, share, seed):
        assert (share, seed) == (0.25, 0)
        away = torch.arange(32) % 8 >= 6
        rows = zip(self.images[:32][away], self.labels[:32][away], strict=True)
        return away, DataLoader([{"image": x, "label": y} for x, y in rows], batch_size=3)


def test_the_choice_is_made_on_images_that_are_held_out(tmp_path) -> None:
    """The rehearsing heads are those that learn from the other images alone; their accuracy on the held-out ones
    chooses, and the query is looked at once, with the head that learnt from all."""
    data, module = HoldsOut(), probe(lr=[0.01, 3.0, 100.0], held_out=0.25)
    trainer = toys.trainer(tmp_path, max_epochs=3)
    trainer.fit(module, data)
    away = torch.arange(32) % 8 >= 6
    with torch.no_grad():
        features = module.backbone.last_blocks(data.images, 2)
    for place, lr in enumerate([0.01, 3.0, 100.0]):
        alone = probe(lr=lr)
        head = alone.heads[0]
        velocity = [torch.zeros_like(p) for p in head.parameters()]
        for epoch in range(3):
            rate = lr * BATCH / 256 * 0.5 * (1 + math.cos(math.pi * epoch / 3))
            for rows in torch.arange(32).split(BATCH):
                kept = rows[~away[rows]]
                loss = F.cross_entropy(head(features[kept]), data.labels[kept])
                grads = torch.autograd.grad(loss, [*head.parameters()])
                for p, v, grad in zip(head.parameters(), velocity, grads, strict=True):
                    v.mul_(0.9).add_(grad)
                    p.data.sub_(rate * v)
        rehearsing = module.candidates.rehearsing[place]
        for mine, other in zip(rehearsing.parameters(), head.parameters(), strict=True):
            torch.testing.assert_close(mine, other)
    held = [
        float((head(features[:32][away]).argmax(1) == data.labels[:32][away]).double().mean())
        for head in module.candidates.rehearsing
    ]
    query = [float((head(features[32:]).argmax(1) == data.labels[32:]).double().mean()) for head in module.heads]
    metrics = trainer.callback_metrics
    assert metrics["linear/held_out/top1"] == pytest.approx(max(held))
    assert metrics["linear/top1"] == pytest.approx(query[held.index(max(held))])
    assert metrics["linear/best_on_query/top1"] == pytest.approx(max(query))
    assert metrics["linear/best_lr"] == [0.01, 3.0, 100.0][held.index(max(held))]


def test_accumulated_batches_count_for_the_learning_rate(tmp_path) -> None:
    module = probe()
    fit(module, tmp_path, epochs=1, accumulate_grad_batches=2)
    assert module.linear.lr_at(0.5, 0, 1, module.images_per_step) == 0.5 * 2 * BATCH / 256


def test_the_backbone_is_left_alone(tmp_path) -> None:
    module = probe()
    before = fingerprint(module.backbone)
    fit(module, tmp_path, epochs=1)
    assert fingerprint(module.backbone) == before
    assert all(p.grad is None and p.requires_grad for p in module.backbone.parameters())
    assert not any(part.training for part in module.train().backbone.modules())
    module.backbone(torch.randn(1, 3, 16, 16)).pooled.sum().backward()  # nothing in it was made in inference mode


def test_the_backbone_follows_the_module() -> None:
    module = probe().double()
    assert next(module.backbone.parameters()).dtype == torch.float64
    assert module(torch.randn(2, 3, 16, 16, dtype=torch.float64))[0].dtype == torch.float64


def test_resumes_to_the_last_bit_from_a_checkpoint_without_the_backbone(tmp_path) -> None:
    whole = probe(lr=[1.0, 3.0])
    fit(whole, tmp_path / "whole")
    path = tmp_path / "second_epoch.ckpt"
    fit(probe(lr=[1.0, 3.0]), tmp_path / "part", callbacks=[SaveSecondEpoch(path)])
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint["state_dict"]) == {
        f"candidates.{part}.{i}.{name}"
        for part in ("heads", "rehearsing")
        for i in (0, 1)
        for name in ("weight", "bias")
    }
    assert checkpoint["linear_probe"]["backbone"] == toys.backbone().spec
    resumed = probe(lr=[1.0, 3.0])
    fit(resumed, tmp_path / "resumed", ckpt_path=path)
    assert toys.largest_difference(toys.state(resumed), toys.state(whole)) == 0

    other = LinearProbe(toys.backbone(), 3, last_blocks=2, lr=[1.0, 3.0])
    with pytest.raises(ValueError, match="backbone_weights: checkpoint '.*', now '"):
        fit(other, tmp_path / "other", ckpt_path=path)
    with pytest.raises(ValueError, match=r"lr: checkpoint \[1.0, 3.0\], now \[2.0\]"):
        fit(probe(lr=2.0), tmp_path / "other", ckpt_path=path)


def test_head_starts_as_the_recipe_says() -> None:
    torch.manual_seed(0)
    (head,) = LinearProbe(toys.backbone(embed_dim=64), 100, last_blocks=2).heads
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.bias.abs().max() == 0
    assert head.in_features == 64 + 128


def test_bad_input(tmp_path) -> None:
    with pytest.raises(ValueError, match="num_classes of 2 or more, got None; it learns from labels"):
        LinearProbe(toys.backbone(), None)
    with pytest.raises(ValueError, match=r"one lr or several different ones, above 0, got \[1.0, 1.0\]"):
        probe(lr=[1.0, 1.0])
    with pytest.raises(ValueError, match="between 1 and the backbone's 2 blocks, got 4"):
        LinearProbe(toys.backbone(), 3)
    with pytest.raises(ValueError, match="needs trainer.max_epochs, got -1"):
        fit(probe(), tmp_path, epochs=-1, max_steps=3)
    with pytest.raises(ValueError, match="has num_classes=4, and the data have 3 classes"):
        fit(LinearProbe(toys.backbone(), 4, last_blocks=1), tmp_path)
    with pytest.raises(ValueError, match="a linear probe needs labels, and the batch has none"):
        probe().training_step({"image": torch.zeros(1, 3, 16, 16)}, 0)
    data = Data()
    data.has_labels = False
    with pytest.raises(ValueError, match="LinearProbe needs labels, and the data of Data have none"):
        toys.trainer(tmp_path).fit(probe(), data)
