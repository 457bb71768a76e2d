"""Lightning modules that are not ours, of both packages, for callbacks that must leave them alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import toys
from torch import Tensor, nn
from torch.utils.data import DataLoader

PACKAGES = ("pytorch_lightning", "lightning.pytorch")
LABELS = torch.arange(24) % 3
IMAGES = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)) + LABELS[:, None]
BANK, QUERY = slice(0, 15), slice(15, 24)


def as_tuple(x: Tensor, y: Tensor) -> Any:
    return x, y


def as_dict(x: Tensor, y: Tensor) -> Any:
    return {"pixels": x, "meta": {"class": y}}


def unpack(batch: Any) -> tuple[Tensor, Tensor]:
    """(images, labels) of both forms."""
    return (batch["pixels"], batch["meta"]["class"]) if isinstance(batch, dict) else batch


def loader(rows: slice = slice(None), *, shuffle: bool = False, form: Callable[..., Any] = as_tuple) -> DataLoader:
    pairs = zip(IMAGES[rows], LABELS[rows], strict=True)
    return DataLoader([form(x, y) for x, y in pairs], batch_size=6, shuffle=shuffle)


class Scalar:
    """A classifier that draws from every generator and has a frozen part in eval mode; its step returns the loss."""

    form = staticmethod(as_tuple)
    by_hand = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3))})
        self.frozen = nn.Dropout(0.9).eval()
        self.head = nn.Linear(5, 3)
        self.modes: list[tuple[bool, ...]] = []
        self.automatic_optimization = not self.by_hand

    def result(self, batch: Any) -> dict[str, Tensor]:
        x, y = unpack(batch)
        self.modes.append(tuple(part.training for part in self.modules()))
        noise = torch.randn(()).item() + float(np.random.randn()) + random.random()  # noqa: NPY002
        features = self.net["trunk"](x + 0.1 * noise)
        loss = F.cross_entropy(self.head(self.frozen(features)), y)
        self.log("own/loss", loss, batch_size=len(y))
        return {"loss": loss, "embedding": features, "label": y}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.result(batch)["loss"]

    def configure_optimizers(self) -> Any:
        if self.by_hand:
            return [torch.optim.SGD(self.net.parameters(), lr=0.1), torch.optim.Adam(self.head.parameters())]
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def step(self, loss: Tensor) -> None:
        """Of both optimizers, by hand."""
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def train_dataloader(self) -> DataLoader:
        return loader(BANK, shuffle=True, form=self.form)

    def odd_dataloader(self) -> DataLoader:
        return loader(QUERY, form=as_dict)


class DictOfTheLoss(Scalar):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.result(batch)["loss"], "more": 1}


class DictOfEverything(Scalar):
    """As our own step, and on batches that are dicts."""

    form = staticmethod(as_dict)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.result(batch)


class NothingByHand(Scalar):
    """Two optimizers; the step returns nothing."""

    by_hand = True

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.step(self.result(batch)["loss"])


class DictByHand(Scalar):
    by_hand = True
    form = staticmethod(as_dict)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        result = self.result(batch)
        self.step(result["loss"])
        return {"loss": result["loss"], "embedding": result["embedding"]}


class StageForward(Scalar):
    """``forward`` takes a batch and a stage and returns a dict: how stable-pretraining writes modules."""

    by_hand = True
    form = staticmethod(as_dict)

    def forward(self, batch: Any, stage: str) -> dict[str, Tensor]:
        x, y = unpack(batch)
        return self.result(batch) if stage == "fit" else {"embedding": self.net["trunk"](x), "label": y}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        state = self.forward(batch, stage="fit")
        self.step(state["loss"])
        return state


class Exact(Scalar):
    """Without noise and batch norm, in float64: two processes with halves of a batch do what one does with all."""

    def __init__(self) -> None:
        super().__init__()
        self.net["trunk"] = nn.Linear(6, 5)
        self.double()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = unpack(batch)
        features = self.net["trunk"](x.double())
        return {"loss": F.cross_entropy(self.head(features), y), "embedding": features, "label": y}


KINDS = (Scalar, DictOfTheLoss, DictOfEverything, NothingByHand, DictByHand, StageForward)


def make(kind: type, package: str = PACKAGES[0]) -> Any:
    """A module of this kind and package; the same initial weights at every call."""
    return type(kind.__name__, (kind, import_module(package).LightningModule), {})()


def trainer(root: Any, package: str = PACKAGES[0], **options: Any) -> Any:
    return import_module(package).Trainer(**{**toys.QUIET, "default_root_dir": root, **options})


def fit(module: Any, root: Any, *callbacks: Any, package: str = PACKAGES[0], ckpt_path: Any = None, **options: Any):
    """Seed every generator and train; the trainer."""
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    made = trainer(root, package, callbacks=list(callbacks), **options)
    made.fit(module, ckpt_path=ckpt_path, weights_only=True)
    return made


def generators() -> tuple[Any, ...]:
    """The states of torch's, numpy's and Python's generators."""
    _, words, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), words.tolist(), rest, random.getstate()
