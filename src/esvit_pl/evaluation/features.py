"""From a loader and a network to features and labels."""

# b images of a batch | n images of the loader | d channels

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.isolation import untracked
from esvit_pl.precision import wide

Unpack = Callable[[Any], tuple[Any, Tensor | None]]
"""A batch -> (what the network takes, labels (b,) or None)."""
Name = TypeVar("Name")


class Extracted(NamedTuple):
    """Features of all images of a loader, in its order."""

    features: Tensor
    """(n d)"""
    labels: Tensor | None
    """(n,) long, (n c) where an image can belong to several classes, None if the loader gives no labels."""


def unpack_batch(batch: Any) -> tuple[Any, Tensor | None]:
    """(images, labels or None) of the batches that most loaders give: ``{"image", "label"}``, ``(image, label, ...)``
    or the images alone. Of several views, ``((x, y), label)``, the first.

    Raises:
        ValueError: anything else; give ``unpack=`` a function of your own.
    """
    if isinstance(batch, Mapping):
        if "image" in batch:
            return batch["image"], batch.get("label")
        found = f"a dict with the keys {', '.join(map(str, batch)) or '(none)'}"
    elif isinstance(batch, (tuple, list)) and batch:
        images = batch[0][0] if isinstance(batch[0], (tuple, list)) and batch[0] else batch[0]
        return images, batch[1] if len(batch) > 1 else None
    elif isinstance(batch, Tensor):
        return batch, None
    else:
        found = type(batch).__name__
    raise ValueError(
        f"a batch must be a dict with 'image' and 'label', a tuple (image, label) or a tensor, got {found}; "
        "give unpack= a function that makes (images, labels) of it"
    )


def unpack_first_view(batch: Any) -> tuple[Any, Tensor | None]:
    """`unpack_batch`; of a training batch of views, ``{"views": [...], "label"}``, the first view."""
    if isinstance(batch, Mapping) and "image" not in batch and "views" in batch:
        return batch["views"][0], batch.get("label")
    return unpack_batch(batch)


def pooled(output: Any) -> Tensor:
    """(b d): what a feature function returned, a tensor or ``Features``."""
    feature = getattr(output, "pooled", output)
    if not isinstance(feature, Tensor) or feature.ndim != 2:
        got = f"a tensor of shape {tuple(feature.shape)}" if isinstance(feature, Tensor) else type(feature).__name__
        raise ValueError(f"a feature function must return (batch, channels) or Features with .pooled of it, got {got}")
    return feature


BESIDE: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda x: x.mean(1), "max": lambda x: x.amax(1)}
"""Poolings of regions (b n d) -> (b d)."""


def blocks_and_poolings(encoder: Any, images: Any, blocks: int, beside: Sequence[str] = ()) -> Tensor:
    """(b c h w) -> (b d): pooled features of the last blocks, earliest first, then those poolings of the regions."""
    if not beside:
        return cast(Tensor, encoder.last_blocks(images, blocks))
    features, pooled_ones = encoder.features_and_blocks(images, blocks)
    return torch.cat([pooled_ones, *(BESIDE[name](features.regions) for name in beside)], dim=-1)


def pools_regions(encoder: Any) -> list[str]:
    """Which of the poolings `BESIDE` an encoder's pooled feature is anyway: the mean, of Swin and its like.

    Seen on an image, so that it holds for anybody's encoder.
    """
    parameter = next(encoder.parameters(), torch.zeros(()))
    spec = getattr(encoder, "spec", {})
    side, channels = spec.get("img_size", 224), spec.get("in_chans", spec.get("channels", 3))
    image = torch.arange(channels * side * side).sin().view(1, channels, side, side).to(parameter)
    with untracked():
        pooled, regions, _ = encoder(image)
    least = 0.01 * pooled.norm()  # half precision rounds
    return [name for name, pool in BESIDE.items() if (pool(regions) - pooled).norm() <= least]


def extract_features(function: Callable[[Any], Any], loader: Iterable[Any], unpack: Unpack = unpack_batch) -> Extracted:
    """Run `function` over a loader, without gradients, outside inference mode.

    >>> import torch
    >>> images, labels = torch.ones(2, 3, 4, 4), torch.tensor([0, 1])
    >>> extract_features(lambda images: images.mean((2, 3)), [(images, labels)])
    Extracted(features=tensor([[1., 1., 1.],
            [1., 1., 1.]]), labels=tensor([0, 1]))

    Args:
        function: images -> (b d) or ``Features``. In the mode it should have: nothing here calls ``eval()``.
        loader: gives batches.
        unpack: batch -> (images, labels or None).

    Returns:
        Features in float32 at least, on the device where `function` made them; (0 0) if there was no batch.
    """
    return joined(extract({"": function}, loader, unpack)[""], like=torch.zeros(0, 0))


def extract(
    functions: Mapping[Name, Callable[[Any], Any]],
    batches: Iterable[Any],
    unpack: Unpack = unpack_batch,
    *,
    prepare: Callable[[Any], Any] = lambda x: x,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    keep: Mapping[Name, torch.dtype] | None = None,
) -> dict[Name, list[Extracted]]:
    """What several functions make of the same batches, batch by batch, in one pass over the images.

    Args:
        functions: {name: function as in `extract_features`}.
        prepare: applied to the images and to the labels first: moves them to a device, say.
        context: entered around each function: autocast, say.
        keep: {name: type in which its features are kept, at unit length}; the others' are in float32 at least.
    """
    parts: dict[Name, list[Extracted]] = {name: [] for name in functions}
    with untracked():
        for batch in batches:
            images, labels = unpack(batch)
            images = prepare(images)
            for name, function in functions.items():
                with context():
                    feature = wide(pooled(function(images)))
                if keep and name in keep:
                    feature = at_unit_length(feature, keep[name])
                if labels is not None:
                    labels = prepare(torch.as_tensor(labels)).long().to(feature.device)
                parts[name].append(Extracted(feature, labels))
    return parts


def at_unit_length(features: Tensor, dtype: torch.dtype) -> Tensor:
    """(n d), whatever its length, as float16 can hold it."""
    return F.normalize(features, dim=1).to(dtype)


def needed_labels(owner: str, labels: Tensor | None, where: str, several: bool = False) -> Tensor:
    """The labels; raises if the batches have no labels ("k-NN needs labels, and the batches of the bank have none"), or
    have several for an image and `several` is not set."""
    if labels is None:
        raise ValueError(f"{owner} needs labels, and {where}; give unpack= a function that finds them")
    if labels.ndim == 2 and not several:
        raise ValueError(
            f"{owner} needs one class for each image, and these images can belong to several of {labels.shape[1]}; "
            "logistic regression (esvit-evaluate evaluation.probes=[logistic]) can learn them"
        )
    return labels


def joined(parts: Sequence[Extracted], like: Tensor) -> Extracted:
    """Parts one after the other; where there are none, features (0 0) of the type and device of `like`."""
    if not parts:
        return Extracted(like.new_zeros(0, 0), like.new_zeros(0, dtype=torch.long))
    labels = [part.labels for part in parts if part.labels is not None]
    return Extracted(torch.cat([part.features for part in parts]), torch.cat(labels) if labels else None)
