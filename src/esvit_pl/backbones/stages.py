"""What backbones made of stages share: Swin, CvT and ViL."""

# b images | c channels of a block

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from esvit_pl.backbones.interface import Backbone, Features, check_block_count


class StagedBackbone(Backbone):
    """A backbone whose blocks lie in stages; ``spec["depths"]`` has the number of blocks of each.

    Attributes:
        stage_widths: channels of each stage.
    """

    stage_widths: list[int]

    def block_features(self, x: Tensor) -> Iterator[Features]:
        """As every backbone's; the last norm is for the last stage."""
        raise NotImplementedError

    @property
    def num_stages(self) -> int:
        return len(self.stage_widths)

    def last_blocks(self, x: Tensor, n: int) -> Tensor:
        return self.features_and_blocks(x, n)[1]

    def features_and_blocks(self, x: Tensor, n: int) -> tuple[Features, Tensor]:
        check_block_count(n, sum(self.spec["depths"]))
        blocks = [*self.block_features(x)][-n:]
        return blocks[-1], torch.cat([block.pooled for block in blocks], dim=-1)

    def last_blocks_width(self, n: int) -> int:
        check_block_count(n, sum(self.spec["depths"]))
        stages = zip(self.stage_widths, self.spec["depths"], strict=True)
        return sum([width for width, depth in stages for _ in range(depth)][-n:])

    def block_of(self, parameter: str) -> tuple[int, int] | None:
        """(stage, number inside the stage) of the block that a parameter lies in. What leads into a later stage lies in
        its first block; None for the first embedding and the last norm."""
        raise NotImplementedError

    def depths(self) -> dict[str, int]:
        blocks = self.spec["depths"]
        places = {name: self.block_of(name) for name, _ in self.named_parameters()}
        return {
            name: (sum(blocks) if name.startswith("norm.") else 0)
            if place is None
            else sum(blocks[: place[0]], place[1] + 1)
            for name, place in places.items()
        }

    def place_of(self, block: int) -> tuple[int, int]:
        """(stage, number inside the stage) of a block that is counted over all stages, from the end if negative."""
        places = [(stage, inside) for stage, depth in enumerate(self.spec["depths"]) for inside in range(depth)]
        check_block(block, len(places))
        return places[block]


def check_block(block: int, available: int) -> None:
    """Refuse a block whose attention is wanted and that the backbone does not have."""
    if not -available <= block < available:
        raise ValueError(f"attention needs a block between {-available} and {available - 1}, got {block}")


def drop_path_rates(spec: Mapping[str, Any]) -> list[list[float]]:
    """Stochastic depth of each stage's blocks: linear from 0 at the first block to `drop_path_rate` at the last."""
    last = max(sum(spec["depths"]) - 1, 1)
    rates = iter([spec["drop_path_rate"] * block / last for block in range(sum(spec["depths"]))])
    return [[next(rates) for _ in range(depth)] for depth in spec["depths"]]


def check_sizes(
    family: str, spec: Mapping[str, Any], widths: Sequence[int], *, per_stage: Sequence[str], positive: Sequence[str]
) -> None:
    """Refuse numbers of which no backbone can be built.

    Args:
        family: for the message.
        spec: with ``depths``, ``num_heads`` and ``drop_path_rate``.
        widths: channels of each stage.
        per_stage: names of the lists that have a number of 1 or more for each stage.
        positive: names of the numbers that must be above 0.
    """
    if len({len(spec[name]) for name in per_stage}) > 1 or not spec["depths"]:
        got = ", ".join(f"{name}={spec[name]}" for name in per_stage)
        raise ValueError(f"{family} needs {', '.join(per_stage)} of equal length, one per stage; got {got}")
    for name in per_stage:
        if min(spec[name]) < 1:
            raise ValueError(f"{family} needs {name} of 1 or more, got {name}={spec[name]}")
    for name in positive:
        if spec[name] <= 0:
            raise ValueError(f"{family} needs a positive {name}, got {spec[name]}")
    for stage, (width, heads) in enumerate(zip(widths, spec["num_heads"], strict=True)):
        if width % heads:
            raise ValueError(
                f"{family}'s stage {stage} is {width} wide, which {heads} heads do not divide; change num_heads"
            )
    if not 0 <= spec["drop_path_rate"] < 1:
        raise ValueError(f"{family} needs drop_path_rate in [0, 1), got {spec['drop_path_rate']}")
