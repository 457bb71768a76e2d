"""Features on the disk, so that another probe need not compute them again."""

# n images of this rank | d channels

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esvit_pl.distributed import num_ranks, rank
from esvit_pl.evaluation.features import Extracted
from esvit_pl.evaluation.interface import Kind
from esvit_pl.evaluation.stored import differing
from esvit_pl.fingerprint import fingerprint
from esvit_pl.specs import plain
from esvit_pl.whole import replacing


class FeatureCache:
    """A folder with a file for each encoder, part of the images ("bank", "query"), kind of features, and rank.

    A file says what its features depend on: a hash of the weights, the architecture, and what `about` says. Only
    features of exactly that are given back; another encoder or other images get files of their own.

    >>> about = {"bank": {"data": "photos", "images": 2}, "query": {"data": "others", "images": 2}}
    >>> cache = FeatureCache("features", about)
    >>> net, features = torch.nn.Linear(2, 2), Extracted(torch.eye(2), torch.tensor([0, 1]))
    >>> cache.put(net, "bank", "pooled", features)
    >>> cache.get(net, "bank", "pooled").labels.tolist(), cache.get(net, "query", "pooled")
    ([0, 1], None)

    Args:
        folder: made when there is something to keep.
        about: {part: what its features depend on besides the encoder}: data, preparation, precision, and "images", how
            many there are. Features of fewer (a pass that was cut short, images that cannot be read) are not kept.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder, self.about = Path(folder), about

    def get(self, encoder: Any, which: str, kind: Kind) -> Extracted | None:
        """This rank's features and labels, on the CPU; None if they were not kept.

        Raises:
            ValueError: the file of that name holds features of something else, or cannot be read.
        """
        about = self._about(encoder, which, kind)
        path = self._path(about)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            kept = json.loads(str(arrays["about"]))
            features = torch.from_numpy(arrays["features"])
            labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); remove it, and its features are computed anew"
            ) from error
        different = differing(kept, about)
        if different:
            name, old, new = different
            raise ValueError(f"{path} holds features of {name} {old}, and {name} {new} was asked for; remove it")
        return Extracted(features, labels)

    def put(self, encoder: Any, which: str, kind: Kind, extracted: Extracted) -> None:
        """Keep this rank's features and labels, if they are those of all its images."""
        if len(extracted.features) != len(range(rank(), self.about[which]["images"], num_ranks())):
            return
        about = self._about(encoder, which, kind)
        path = self._path(about)
        arrays = {"features": extracted.features.float().cpu().numpy(), "about": np.array(json.dumps(about))}
        if extracted.labels is not None:
            arrays["labels"] = extracted.labels.cpu().numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def _about(self, encoder: Any, which: str, kind: Kind) -> dict[str, Any]:
        return {
            **self.about[which],
            "weights": fingerprint(encoder),
            "architecture": plain(getattr(encoder, "spec", type(encoder).__name__)),
            "part": which,
            "kind": kind,
            "rank": [rank(), num_ranks()],
        }

    def _path(self, about: Mapping[str, Any]) -> Path:
        digest = blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()
        return self.folder / f"{about['part']}-{about['kind']}-{digest}.npz"
