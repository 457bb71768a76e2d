"""Reading the golden files: reference values of the released implementation.

Every setting comes from a file's keys, shapes and metadata, so that files of other sizes, windows, depths and
optimizers are tested as soon as they lie in the folder.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from esvit_pl.backbones import Backbone, build, cvt, swin, vil
from esvit_pl.checkpoints.infer_spec import infer_spec

FAMILIES = {"swin": swin, "cvt": cvt, "vil": vil}

OWN_FOLDER = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("ESVIT_GOLDEN", OWN_FOLDER))


@dataclass
class Golden:
    name: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose key starts with `prefix.`, without it."""
        return {k.removeprefix(f"{prefix}."): v for k, v in self.tensors.items() if k.startswith(f"{prefix}.")}

    def sizes(self, prefix: str) -> list[int]:
        """Image sides for which the file holds `prefix.<side>`."""
        return sorted(int(key.split(".")[1]) for key in self.tensors if re.fullmatch(rf"{prefix}\.\d+", key))


def paths(prefix: str) -> list[Path]:
    """Files of the folder whose names start with `prefix`. pytest skips a test that is parametrised by none."""
    return sorted(FOLDER.glob(f"{prefix}*.safetensors"))


def read(path: Path) -> Golden:
    with safe_open(path, "pt") as file:
        settings = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        return Golden(path.stem, settings, {key: file.get_tensor(key) for key in file.keys()})


def image(batch: int, side: int, phase: float = 0.0) -> Tensor:
    """The closed-form image of golden/README.md."""
    b, c, i, j = torch.meshgrid(
        *(torch.arange(1, n + 1, dtype=torch.float64) for n in (batch, 3, side, side)), indexing="ij"
    )
    x = torch.sin(0.05 * i * c + phase) + torch.cos(0.03 * j * b - phase) + 0.3 * torch.sin(0.011 * i * j + b + c)
    return x.float()


def backbone_from(weights: dict[str, Tensor], settings: dict[str, Any]) -> Backbone:
    """The backbone of a file, with its released weights inside; its sizes follow from them and from the settings."""
    found = infer_spec(weights)
    assert found is not None
    spec = {**found.spec, "drop_path_rate": 0.0}
    if spec["name"] == "cvt":  # its weights do not tell these
        window = settings["window"]
        spec["num_heads"] = settings["num_heads"]
        spec["windows"] = window if isinstance(window, list) else [window] * len(spec["dims"])
    if spec["name"] == "vil":
        spec |= {**vil_arch(settings["arch"]), "mode": settings["mode"]}
    backbone = build(**spec)
    backbone.load_state_dict(FAMILIES[spec["name"]].from_released(weights))
    return backbone


def to_head(key: str) -> str:
    """Released head names -> ours."""
    names = {"last_layer.weight_g": "prototypes.gain", "last_layer.weight_v": "prototypes.direction"}
    return names.get(key, key)


def to_network(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a whole network with a Swin: released names -> ours."""
    heads = {"head_dense.": "heads.region.", "head.": "heads.view."}
    network = {
        ours + to_head(key.removeprefix(released)): value
        for released, ours in heads.items()
        for key, value in weights.items()
        if key.startswith(released)
    }
    backbone = {key: value for key, value in weights.items() if not key.startswith(tuple(heads))}
    return network | {f"backbone.{key}": value for key, value in swin.from_released(backbone).items()}


def to_mlp(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rivals' heads: their names -> ours, which count all layers from 0 on. MoBY's hidden ones count from 1."""
    hidden = [int(key.split(".")[1]) for key in weights if key.startswith("linear_hidden")]
    last = max(hidden, default=0) + 1  # a ReLU stands between

    def ours(key: str) -> str:
        where, _, rest = key.partition(".")
        if where == "linear_out":
            return f"mlp.{last}.{rest}"
        if where == "linear_hidden":
            number, _, rest = rest.partition(".")
            return f"mlp.{int(number) - 1}.{rest}"
        return f"mlp.{key}"

    return {ours(key): value for key, value in weights.items()}


def largest_error(value: Tensor, reference: Tensor) -> float:
    """Largest difference."""
    assert value.shape == reference.shape, f"{tuple(value.shape)} against {tuple(reference.shape)}"
    return (value - reference).abs().max().item()


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest reference value."""
    assert value.shape == reference.shape, f"{tuple(value.shape)} against {tuple(reference.shape)}"
    return ((value - reference).abs().max() / reference.abs().max().clamp_min(1e-30)).item()


def vil_arch(arch: str) -> dict[str, list[Any]]:
    """Arguments of a ViL from a released architecture string, for example ``l1,h3,d96,n2,s1,g1,p4,f7,a0_l2,...``.

    Stages are joined by ``_``. In each a letter and a number: h heads (3), d channels (192), n blocks (1), s 1 for
    sliding attention (1), g globals (1), p patch (2), f chunk (7), a 1 for absolute positions, 0 for the relative bias
    (1). As released, all stages after the first s0 are full, whatever they say.
    """
    start = {"h": 3, "d": 192, "n": 1, "s": 1, "g": 1, "p": 2, "f": 7, "a": 1}
    stages = [{**start, **{part[0]: int(part[1:]) for part in text.split(",")}} for text in arch.split("_")]
    letters = {"dims": "d", "depths": "n", "num_heads": "h", "patch_sizes": "p", "windows": "f", "num_globals": "g"}
    lists: dict[str, list[Any]] = {name: [stage[letter] for stage in stages] for name, letter in letters.items()}
    sliding = [all(stage["s"] for stage in stages[: index + 1]) for index in range(len(stages))]
    return {**lists, "sliding": sliding, "positions": ["absolute" if stage["a"] else "relative" for stage in stages]}
