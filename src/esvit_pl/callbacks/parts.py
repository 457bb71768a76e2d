"""How a callback finds what it was told to look at, in a module and a data module that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn

from esvit_pl.distributed import num_ranks, rank
from esvit_pl.evaluation.features import Extracted, Unpack, extract_features, unpack_batch

Part = str | Callable[..., Any]
"""A dotted attribute path in the module, or the function itself."""


def find_part(owner: str, module: nn.Module, part: Part, *, argument: str = "features") -> Callable[..., Any]:
    """The callable that `part` names.

    Args:
        owner: who asks, for the message.
        module: where a path starts.
        part: e.g. ``"teacher.backbone"``; a callable is given back as it is.
        argument: the name under which `owner` was given it.

    Raises:
        ValueError: there is no such attribute, or it cannot be called; says where the path ends and what is there.
    """
    if not isinstance(part, str):
        return part
    found: Any = module
    for depth, name in enumerate(part.split(".")):
        if not hasattr(found, name):
            where = ".".join([type(module).__name__, *part.split(".")[:depth]])
            raise ValueError(
                f"{owner} looks for {argument}={part!r}, and {where} has no attribute {name!r}; it has "
                f"{_listed(_parts_of(found))}. Give the path of a network, or a function of images"
            )
        found = getattr(found, name)
    if not callable(found):
        raise ValueError(f"{owner} needs a network at {argument}={part!r}, found {type(found).__name__}, no callable")
    return found


def named_parts(owner: str, features: Part | Mapping[str, Part]) -> dict[str | None, Part]:
    """{name: part}, the main one first; a single part has no name."""
    named: dict[str | None, Part] = {**features} if isinstance(features, Mapping) else {None: features}  # type: ignore[dict-item]
    if not named:
        raise ValueError(f"{owner} needs one feature or more, got an empty dict")
    return named


def find_loader(owner: str, trainer: Any, module: Any, loader: str | Iterable[Any]) -> Callable[[], Iterable[Any]]:
    """A function that gives the loader that `loader` names: ``"bank"`` means ``datamodule.bank_dataloader()``.

    Looked for in the data module, then in the module; a loader is given back as it is.

    Raises:
        ValueError: neither has such a method; says which loaders there are.
    """
    if not isinstance(loader, str):
        return lambda: loader
    places = [place for place in (getattr(trainer, "datamodule", None), module) if place is not None]
    for place in places:
        method = getattr(place, f"{loader}_dataloader", None)
        if method is not None:
            return method
    found = sorted({name for place in places for name in dir(place) if name.endswith("_dataloader")})
    raise ValueError(
        f"{owner} looks for {loader}_dataloader() in {' and '.join(type(place).__name__ for place in places)}, "
        f"and found {_listed(found)}; name one of these without '_dataloader', or give the loader itself"
    )


def need_labels(owner: str, trainer: Any) -> None:
    """Refuse a data module that says that its data have no labels."""
    if getattr(getattr(trainer, "datamodule", None), "has_labels", True) is False:
        raise ValueError(
            f"{owner} needs labels, and the data of {type(trainer.datamodule).__name__} have none; "
            "put the images into one folder for each class, or leave this measure out"
        )


def check_interval(owner: str, every_n_epochs: int) -> None:
    if every_n_epochs < 1:
        raise ValueError(f"{owner} needs every_n_epochs of 1 or more, got {every_n_epochs}")


def is_due(trainer: Any, every_n_epochs: int) -> bool:
    """Whether the epoch that ends is one of every so many, or the last one."""
    epoch = trainer.current_epoch + 1
    return epoch % every_n_epochs == 0 or epoch == trainer.max_epochs


def log_accuracies(module: Any, prefix: str, metrics: Mapping[str, float], num_query: int) -> None:
    """Log what was measured on so many images at the end of an epoch; the bar shows ``<prefix>/top1``."""
    for name, value in metrics.items():
        main = name == f"{prefix}/top1"
        module.log(name, value, on_step=False, on_epoch=True, prog_bar=main, batch_size=num_query)


def unpack_first_view(batch: Any) -> tuple[Any, Tensor | None]:
    """`unpack_batch`; of a training batch of views, ``{"views": [...], "label"}``, the first view."""
    if isinstance(batch, Mapping) and "image" not in batch and "views" in batch:
        return batch["views"][0], batch.get("label")
    return unpack_batch(batch)


def held_out(trainer: Any) -> Tensor | None:
    """(images,) bool: whether the label of a training image, counted as the batches' "index", belongs to the query.

    Where there is no ``val``, ImageDataModule pretrains on all images, those of the query among them. None if there are
    none, or if the data module is another one.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if getattr(data, "train_subset", None) != "all" or data.dataset.val is not None:
        return None
    held = torch.zeros(len(data.train_images), dtype=torch.bool)
    held[data.dataset.query.indices] = True
    return held


def features_on_trainer(
    trainer: Any,
    network: Callable[..., Any],
    loader: Iterable[Any],
    unpack: Unpack = unpack_batch,
    *,
    share: bool = True,
) -> Extracted:
    """This rank's part of `extract_features`, on the trainer's device and in its precision.

    A loader that knows the ranks gives this rank its part; of any other one, this rank takes every n-th batch.

    Args:
        share: False for batches that are this rank's already.
    """
    precision, device = trainer.precision_plugin, trainer.strategy.root_device
    mine = not share or gives_each_rank_its_part(loader)
    every, first = (1, 0) if mine else (num_ranks(), rank())

    def features(images: Any) -> Any:
        with precision.forward_context():
            return network(images)

    def prepare(x: Any) -> Any:
        return precision.convert_input(move_data_to_device(x, device))

    return extract_features(features, loader, unpack, prepare=prepare, every=every, first=first)


def gives_each_rank_its_part(loader: Any) -> bool:
    """Whether a loader's sampler knows the ranks, as torch's DistributedSampler and those of ImageDataModule do."""
    samplers = [getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    samplers.append(getattr(samplers[1], "sampler", None))
    return any(hasattr(sampler, name) for sampler in samplers for name in ("num_replicas", "ranks"))


def _parts_of(found: Any) -> list[str]:
    if isinstance(found, nn.Module):
        return [name for name, _ in found.named_children()]
    return sorted(name for name in vars(found) if not name.startswith("_")) if hasattr(found, "__dict__") else []


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "nothing of that kind"
