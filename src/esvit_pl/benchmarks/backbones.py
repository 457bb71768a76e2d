"""``python -m esvit_pl.benchmarks.backbones``: every backbone config in one table, as docs/backbones.md shows it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from esvit_pl.backbones import Backbone, build
from esvit_pl.benchmarks.published import accuracy
from esvit_pl.configs.compose import compose, list_backbones

SOURCES = {
    "swin": "2103.14030",
    "cvt": "2103.15808",
    "vil": "2103.15358",
    "deit": "2012.12877",
    "vit": "2010.11929",
    "resnet50": "1512.03385",
}
"""First part of a config's name -> arXiv number of the architecture's paper."""
SIZES = (224, 96)


@dataclass(frozen=True)
class Row:
    """A backbone config."""

    name: str
    parameters: int
    regions: tuple[int, ...]
    """At each of `SIZES`."""
    attention: str
    source: str
    view: str
    """Published linear / k-NN accuracy on ImageNet-1k in %, with L_V."""
    view_region: str
    """The same with L_V + L_R."""


def rows() -> list[Row]:
    """One for each file of conf/backbone but ``timm``, which may be any model. Nothing is computed, only counted."""
    return [_row(name) for name in configs()]


def configs() -> list[str]:
    """Names of conf/backbone but ``timm``."""
    return [name for name in list_backbones() if name != "timm"]


def from_config(name: str, device: str = "meta") -> Backbone:
    """A file of conf/backbone as a backbone in eval mode; on the meta device it has shapes and no values."""
    node = dict(compose("pretrain", f"backbone={name}").backbone)
    node.pop("_target_")
    with torch.device(device):
        return build(**node).eval()


def parameter_count(backbone: Backbone) -> int:
    """Of all tensors that can learn."""
    return sum(parameter.numel() for parameter in backbone.parameters())


def as_markdown(table: list[Row]) -> str:
    """The table of docs/backbones.md."""
    lines = [
        "| `backbone=` | parameters | regions at 224 px | at 96 px | attention | architecture | L_V | L_V + L_R |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        regions = " | ".join(map(str, row.regions))
        lines.append(
            f"| `{row.name}` | {row.parameters / 1e6:.1f} M | {regions} | {row.attention} | "
            f"[{row.source}](https://arxiv.org/abs/{row.source}) | {row.view} | {row.view_region} |"
        )
    return "\n".join(lines)


def _row(name: str) -> Row:
    backbone = from_config(name)
    images = [torch.empty(1, 3, side, side, device="meta") for side in SIZES]
    regions = tuple(backbone(image).regions.shape[1] for image in images)
    return Row(
        name,
        parameter_count(backbone),
        regions,
        attention_of(backbone),
        SOURCES[name.partition("_")[0]],
        str(accuracy(name, "view") or "-"),
        str(accuracy(name, "view_region") or "-"),
    )


def attention_of(backbone: Backbone) -> str:
    """How its tokens see one another, in words."""
    spec = backbone.spec
    if spec["name"] == "swin":
        return f"windows of {spec['window']}, shifted in turn"
    if spec["name"] == "cvt":
        return "windows of " + " ".join(map(str, spec["windows"]))
    if spec["name"] == "vil":
        kinds = [
            f"sliding, chunks of {w}" if s else "full" for s, w in zip(spec["sliding"], spec["windows"], strict=True)
        ]
        return "; ".join(f"{kind} (stages {_stages(kinds, kind)})" for kind in dict.fromkeys(kinds))
    try:
        backbone.attention(torch.empty(1, 3, *SIZES[:1] * 2, device="meta"))
    except NotImplementedError:
        return "none"
    return "full"


def _stages(kinds: list[str], kind: str) -> str:
    numbers = [number for number, other in enumerate(kinds, start=1) if other == kind]
    return f"{numbers[0]}-{numbers[-1]}"


if __name__ == "__main__":
    print(as_markdown(rows()))
