"""What a checkpoint of any format holds, under our names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from esvit_pl.augment import Recipe

State = dict[str, Tensor]


@dataclass(frozen=True)
class Moments:
    """What an optimizer has gathered."""

    name: str
    """"adamw", "sgd" or "lars"."""
    of: dict[str, dict[str, Tensor]]
    """Parameter of the student (``backbone.*``, ``heads.*``) -> its tensors, as torch's optimizers call them."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights to start from, to go on with, or to look at. Every format is read into one of these."""

    path: str
    format: str
    """What it was recognised as, for people: "esvit_pl", "released EsViT", "released DINO", ..."""
    backbone: dict[str, Any]
    """``backbones.build(**backbone)`` makes the backbone that these weights fit."""
    networks: dict[str, State]
    """"student" and "teacher", or "backbone" where the file holds only one -> weights named as in `MultiCropNetwork`:
    ``backbone.*``, ``heads.view.*``, ``heads.region.*``."""
    guessed: tuple[str, ...] = ()
    """Arguments of the backbone that the file leaves open."""
    centers: dict[str, Tensor] = field(default_factory=dict)
    """Head -> its centre (k,)."""
    epoch: int | None = None
    """Epochs of pretraining that were finished."""
    moments: Moments | None = None
    config: dict[str, Any] | None = None
    """The run's whole config, where the file tells."""
    recipe: Recipe | None = None
    """How images were prepared, where the file tells."""

    def network(self, name: str) -> State:
        """Weights of the student or the teacher; of the only network where the file holds one.

        Raises:
            ValueError: there is no such network.
        """
        if set(self.networks) == {"backbone"}:
            return self.networks["backbone"]
        if name not in self.networks:
            raise ValueError(f"{self.path} holds no {name}; its networks are {', '.join(sorted(self.networks))}")
        return self.networks[name]


def part(state: Mapping[str, Tensor], prefix: str) -> State:
    """Entries whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    """Entries with `prefix` before their names."""
    return {f"{prefix}{name}": value for name, value in state.items()}
