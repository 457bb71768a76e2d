"""The contents of a checkpoint of any format, under our names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from esvit_pl.augment import Recipe

State = dict[str, Tensor]
Network = Literal["encoder", "teacher", "student"]
"""Whose weights: "encoder" is the teacher, or without a teacher the student."""


@dataclass(frozen=True)
class Moments:
    """The state of an optimizer."""

    name: str
    """"adamw", "sgd" or "lars"."""
    of: dict[str, dict[str, Tensor]]
    """Parameter of the student (``backbone.*``, ``heads.*``) -> its tensors, as torch's optimizers call them."""
    parameters: tuple[str, ...] | None = None
    """All parameters that the optimizer has, also those without a state yet; None where the file does not say it."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights to start from, to go on with, or to look at. Every format is read into one of these.

    >>> from torch import zeros
    >>> checkpoint = Checkpoint("last.ckpt", "esvit_pl", {"name": "swin"}, {"student": {"heads.view.bias": zeros(2)}})
    >>> checkpoint.resolve("encoder")
    'student'
    """

    path: str
    format: str
    """The recognised format, for people: "esvit_pl", "released EsViT", "released DINO", ..."""
    backbone: dict[str, Any]
    """``backbones.build(**backbone)`` makes the backbone that these weights fit."""
    networks: dict[str, State]
    """"student" and "teacher", or "backbone" where the file holds only one -> weights named as in `MultiCropNetwork`:
    ``backbone.*``, ``heads.<name>.*``."""
    guessed: tuple[str, ...] = ()
    """Arguments of the backbone that the file leaves open."""
    objective: State = field(default_factory=dict)
    """What the objective remembers (centres, a queue), named as in its ``state_dict()``."""
    epoch: int | None = None
    """Epochs of pretraining that were finished."""
    moments: Moments | None = None
    config: dict[str, Any] | None = None
    """The run's whole config, if the file has it."""
    left_out: tuple[str, ...] = ()
    """Names of weights in the file that belong to no network here, such as a classifier's."""
    recipe: Recipe | None = None
    """How images were prepared, if the file says it."""

    def resolve(self, network: str) -> str:
        """The key in `networks` that a `Network` means here; a file with one nameless backbone has only that.

        Raises:
            ValueError: there is no such network.
        """
        if set(self.networks) == {"backbone"}:
            return "backbone"
        if network == "encoder":
            return "teacher" if "teacher" in self.networks else "student"
        if network not in self.networks:
            raise ValueError(f"{self.path} holds no {network}; its networks are {', '.join(sorted(self.networks))}")
        return network

    def network(self, network: str) -> State:
        """The weights of a `Network`.

        Raises:
            ValueError: there is no such network.
        """
        return self.networks[self.resolve(network)]


def part(state: Mapping[str, Tensor], prefix: str) -> State:
    """Entries whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    """Entries with `prefix` before their names."""
    return {f"{prefix}{name}": value for name, value in state.items()}
