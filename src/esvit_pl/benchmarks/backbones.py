"""``python -m esvit_pl.benchmarks.backbones``: every backbone config in one table, as docs/backbones.md shows it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files

import torch

from esvit_pl.backbones import Backbone, build
from esvit_pl.cli.calls import CONFIGS, compose, list_backbones

SOURCES = {
    "swin": "2103.14030",
    "cvt": "2103.15808",
    "vil": "2103.15358",
    "deit": "2012.12877",
    "vit": "2010.11929",
    "resnet50": "1512.03385",
}
"""First part of a config's name -> arXiv number of the architecture's paper."""
OF_DINO = {
    "deit_small_p16": "77.0 / 74.5",
    "deit_small_p8": "79.7 / 78.3",
    "vit_base_p16": "78.2 / 76.1",
    "vit_base_p8": "80.1 / 77.4",
}
"""Results of DINO's own training, as the EsViT paper's tables give them."""
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
    return [_row(name) for name in list_backbones() if name != "timm"]


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
    node = dict(compose("pretrain", f"backbone={name}").backbone)
    node.pop("_target_")
    with torch.device("meta"):
        backbone = build(**node).eval()
        regions = tuple(backbone(torch.empty(1, 3, side, side)).regions.shape[1] for side in SIZES)
    return Row(
        name,
        sum(parameter.numel() for parameter in backbone.parameters()),
        regions,
        attention_of(backbone),
        SOURCES[name.partition("_")[0]],
        OF_DINO.get(name) or published(name, "view"),
        published(name, "view_region"),
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


def published(backbone: str, loss: str) -> str:
    """What the header of this backbone's experiment expects; - where none is published."""
    path = files(CONFIGS).joinpath("experiment", f"{backbone}_{loss}.yaml")
    if not path.is_file():
        return "-"
    expected = re.search(r"# Expected: linear ([\d.]+) %, k-NN ([\d.]+) %", path.read_text(encoding="utf-8"))
    return f"{expected[1]} / {expected[2]}" if expected else "-"


def _stages(kinds: list[str], kind: str) -> str:
    numbers = [number for number, other in enumerate(kinds, start=1) if other == kind]
    return f"{numbers[0]}-{numbers[-1]}"


if __name__ == "__main__":
    print(as_markdown(rows()))
