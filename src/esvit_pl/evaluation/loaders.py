"""How an evaluation finds its images in a data module and a module that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def find_loader(owner: str, trainer: Any, module: Any, loader: str | Iterable[Any]) -> Callable[[], Iterable[Any]]:
    """A function that gives the loader that `loader` names: ``"bank"`` means ``datamodule.bank_dataloader()``.

    Looked for in the data module, then in the module; "train" and "val" then are the loaders that ``fit`` was given. A
    loader is given back as it is.

    Raises:
        ValueError: there is no such loader; says which ones there are.
    """
    if not isinstance(loader, str):
        return lambda: loader
    places = [place for place in (getattr(trainer, "datamodule", None), module) if place is not None]
    for place in places:
        if (name := f"{loader}_dataloader") in _loaders(place):
            method: Callable[[], Iterable[Any]] = getattr(place, name)
            return method
    if loader in GIVEN:
        return lambda: _given(owner, trainer, loader)
    found = sorted({name for place in places for name in _loaders(place)})
    remedy = "name one of these without '_dataloader', or give the loader itself" if found else "give the loader itself"
    remedy += "; the loaders that fit was given are called 'train' and 'val'"
    raise ValueError(
        f"{owner} looks for {loader}_dataloader() in {' and '.join(type(place).__name__ for place in places)}, "
        f"and found {', '.join(found) or 'none'}; {remedy}"
    )


GIVEN = {"train": "train_dataloader", "val": "val_dataloaders"}
"""Name -> the Trainer's attribute with what ``fit`` was given."""


def _given(owner: str, trainer: Any, loader: str) -> Iterable[Any]:
    found = getattr(trainer, GIVEN[loader], None)
    if isinstance(found, (list, tuple)) and len(found) == 1:
        (found,) = found
    if found is None or isinstance(found, (list, tuple, dict)):
        what = "several" if found else "no"
        why = "" if found or loader == "train" else " (none is read where the module has no validation_step)"
        raise ValueError(
            f"{owner} looks for the loader {loader!r} that fit was given, and it was given {what} {loader} loaders"
            f"{why}; give the loader itself"
        )
    given: Iterable[Any] = found
    return given


def _loaders(place: Any) -> list[str]:
    """Names of the methods that give a loader. Lightning's own are left out, since they only say that there is none."""
    names = (name for name in dir(place) if name.endswith("_dataloader"))
    homes = {name: str(getattr(getattr(place, name), "__module__", "")).partition(".")[0] for name in names}
    return [name for name, home in homes.items() if home not in ("pytorch_lightning", "lightning")]


def need_labels(owner: str, trainer: Any) -> None:
    """Refuse a data module that says that its data have no labels."""
    if getattr(getattr(trainer, "datamodule", None), "has_labels", True) is False:
        raise ValueError(
            f"{owner} needs labels, and the data of {type(trainer.datamodule).__name__} have none; "
            "put the images into one folder for each class, or leave this measure out"
        )


def held_out(trainer: Any) -> Tensor | None:
    """(images,) bool: whether the label of a training image, counted as the batches' "index", belongs to the query.

    Where there is no ``val``, ImageDataModule pretrains on all images, those of the query among them. None if there are
    none, or if the data module is another one.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if getattr(data, "train_subset", None) != "all" or data.dataset.val is not None or data.dataset.test is not None:
        return None
    held = torch.zeros(len(data.train_images), dtype=torch.bool)
    held[data.dataset.query.indices] = True
    return held
