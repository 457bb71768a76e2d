"""A pretraining small enough for tests: a Swin of two blocks on 32 and 16 px views of noise."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from esvit_pl.backbones import Backbone, build
from esvit_pl.distributed import num_ranks, rank
from esvit_pl.modules.pretrain import Pretrainer
from esvit_pl.objectives import EsViTObjective
from esvit_pl.optim import OptimizerRecipe

SIDES = (32, 32, 16, 16)
# The same training as a command types it, for benchmarks.
WORDS = [
    "backbone=swin_micro_32px",
    "backbone.embed_dim=8",
    "backbone.num_heads=[1,2]",
    "augment.global_size=32",
    "augment.local_size=16",
    "augment.num_local=2",
    "loss.num_prototypes=64",
    "loss.hidden_dim=16",
    "loss.out_dim=8",
    "trainer=cpu",
    "batch_size=1",
    "repeats=1",
]

# The smallest backbone of each family that has two stages.
FAMILIES: dict[str, dict[str, Any]] = {
    "swin": {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window": 4, "img_size": 32},
    "cvt": {"dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "windows": [4, 4]},
    "vil": {
        "dims": [8, 16],
        "depths": [1, 1],
        "num_heads": [1, 2],
        "patch_sizes": [4, 2],
        "windows": [3, 3],
        "num_globals": [1, 0],
        "sliding": [True, False],
        "positions": ["relative", "relative"],
        "img_size": 32,
    },
}


def backbone(**overrides: Any) -> Backbone:
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window": 4, "img_size": 32, "drop_path_rate": 0.0}
    return build("swin", **{**sizes, **overrides})


def objective(**overrides: Any) -> EsViTObjective:
    sizes = {"num_prototypes": 12, "hidden_dim": 16, "out_dim": 6, "teacher_temp_warmup_epochs": 1}
    return EsViTObjective(**{**sizes, **overrides})


def pretrainer(
    loss: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    network: dict[str, Any] | None = None,
    **overrides: Any,
) -> Pretrainer:
    """The same initial weights at every call."""
    torch.manual_seed(0)
    recipe = OptimizerRecipe(**{"lr": 0.05, "warmup_epochs": 1, **(optimizer or {})})
    return Pretrainer(backbone(**(network or {})), objective(**(loss or {})), recipe, **overrides)


class Noise(Dataset):
    """Views of image i in epoch 0, 1, ...: always the same."""

    def __init__(self, length: int, dtype: torch.dtype = torch.float32) -> None:
        self.length, self.dtype = length, dtype

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, Any]:
        noise = torch.Generator().manual_seed(i)
        views = [torch.randn(3, side, side, generator=noise, dtype=torch.float64).to(self.dtype) for side in SIDES]
        return {"views": views, "label": i % 3, "index": i}


class RankSlices:
    """Batches of consecutive images, dealt to the ranks in turn."""

    def __init__(self, length: int, batch_size: int) -> None:
        self.length, self.batch_size = length, batch_size

    def __len__(self) -> int:
        return self.length // (self.batch_size * num_ranks())

    def __iter__(self):
        for b in range(len(self)):
            start = (b * num_ranks() + rank()) * self.batch_size
            yield list(range(start, start + self.batch_size))


def loader(length: int, batch_size: int, dtype: torch.dtype = torch.float32) -> DataLoader:
    return DataLoader(Noise(length, dtype), batch_sampler=RankSlices(length, batch_size))


QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "max_epochs": 2,
}


def trainer(root: Any, **overrides: Any) -> pl.Trainer:
    return pl.Trainer(**{**QUIET, "default_root_dir": root, **overrides})


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def largest_difference(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert mine.keys() == other.keys()
    return max((mine[name].double() - other[name].double()).abs().max().item() for name in mine)


class NoWait(TorchDispatchMode):
    """Fails at every operation at which the host would wait until a GPU has done all that it was asked for before.

    They read a value on the host, or need one for the size of their result; and `torch.tensor` of Python's numbers (it
    lifts them), which on a GPU is a copy from memory that is not pinned.
    """

    values = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "lift_fresh"})
    sizes = frozenset({"nonzero", "masked_select", "isin", "bincount", "_unique2", "unique_dim", "unique_consecutive"})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put_") and any(m is not None and m.dtype == torch.bool for m in args[1])
        if name in self.values or name in self.sizes or masks:
            raise AssertionError(f"{name} waits for the GPU")
        return func(*args, **(kwargs or {}))


class Launches(TorchDispatchMode):
    """Counts the operations that compute something: on a GPU each is a launch or more."""

    views = frozenset({"detach", "unbind", "view", "alias"})

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func.overloadpacket.__name__ not in self.views
        return func(*args, **(kwargs or {}))
