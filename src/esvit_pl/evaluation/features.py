"""From a loader and a network to features and labels."""

# b images of a batch | n images of the loader | d channels

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esvit_pl.isolation import untracked
from esvit_pl.precision import wide

Unpack = Callable[[Any], tuple[Any, "Tensor | None"]]
"""A batch -> (what the network takes, labels (b,) or None)."""


class Extracted(NamedTuple):
    """Features of all images of a loader, in its order."""

    features: Tensor
    """(n d)"""
    labels: Tensor | None
    """(n,) long, None if the loader gives no labels."""


def unpack_batch(batch: Any) -> tuple[Any, Tensor | None]:
    """(images, labels or None) of the batches that most loaders give: ``{"image", "label"}``, ``(image, label, ...)``
    or the images alone.

    Raises:
        ValueError: anything else; give ``unpack=`` a function of your own.
    """
    if isinstance(batch, Mapping):
        if "image" in batch:
            return batch["image"], batch.get("label")
        found = f"a dict with the keys {', '.join(map(str, batch)) or '(none)'}"
    elif isinstance(batch, (tuple, list)) and batch:
        return batch[0], batch[1] if len(batch) > 1 else None
    elif isinstance(batch, Tensor):
        return batch, None
    else:
        found = type(batch).__name__
    raise ValueError(
        f"a batch must be a dict with 'image' and 'label', a tuple (image, label) or a tensor, got {found}; "
        "give unpack= a function that makes (images, labels) of it"
    )


def pooled(output: Any) -> Tensor:
    """(b d): what a feature function returned, a tensor or ``Features``."""
    feature = getattr(output, "pooled", output)
    if not isinstance(feature, Tensor) or feature.ndim != 2:
        got = f"a tensor of shape {tuple(feature.shape)}" if isinstance(feature, Tensor) else type(feature).__name__
        raise ValueError(f"a feature function must return (batch, channels) or Features with .pooled of it, got {got}")
    return feature


def extract_features(
    function: Callable[[Any], Any],
    loader: Iterable[Any],
    unpack: Unpack = unpack_batch,
    *,
    prepare: Callable[[Any], Any] = lambda batch: batch,
    every: int = 1,
    first: int = 0,
) -> Extracted:
    """Run `function` over a loader, without gradients, outside inference mode.

    Args:
        function: images -> (b d) or ``Features``. In the mode it should have: nothing here calls ``eval()``.
        loader: gives batches.
        unpack: batch -> (images, labels or None).
        prepare: applied to the images and to the labels first: moves them to a device, say.
        every: take one batch in so many, from batch `first` on: how ranks share a loader that gives all of them all.

    Returns:
        Features in float32 at least, on the device where `function` made them; (0 0) if there was no batch.
    """
    parts = []
    with untracked():
        for batch in islice(loader, first, None, every):
            images, labels = unpack(batch)
            feature = wide(pooled(function(prepare(images))))
            if labels is not None:
                labels = prepare(torch.as_tensor(labels)).long().to(feature.device)
            parts.append(Extracted(feature, labels))
        return joined(parts, like=prepare(torch.zeros(0, 0)))


def joined(parts: Sequence[Extracted], like: Tensor) -> Extracted:
    """Parts one after the other; where there are none, features (0 0) of the type and device of `like`."""
    if not parts:
        return Extracted(like.new_zeros(0, 0), like.new_zeros(0, dtype=torch.long))
    labels = [part.labels for part in parts if part.labels is not None]
    return Extracted(torch.cat([part.features for part in parts]), torch.cat(labels) if labels else None)
