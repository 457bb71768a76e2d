"""Our backbones among timm's models: ``timm.create_model("esvit_cvt_tiny_w7", num_classes=10)``.

timm does not know our families. Importing ``esvit_pl.backbones`` adds every size of ``conf/backbone/`` to its registry,
under names that start with ``esvit_``, and changes nothing else there.
"""

# b images | n regions | c channels

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import torch
import yaml
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn

from esvit_pl.backbones.interface import Backbone

__all__ = ["SIZES", "ModelForTimm"]  # timm adds the names that it registers

PREFIX = "esvit_"
POOLS = ("token", "avg", "")


FIRST_CONV = {"swin": "patch_embed.proj", "cvt": "stages.0.embed.proj", "vil": "layer1.0.proj"}
"""Family -> the layer that sees the images; timm fits its weights to another number of channels."""


def _read_sizes() -> dict[str, dict[str, Any]]:
    """The files of ``conf/backbone/`` that are of our own families: plain YAML. Its reader comes with timm."""
    sizes = {}
    for path in sorted(files("esvit_pl.conf").joinpath("backbone").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".yaml"):
            spec = yaml.safe_load(path.read_text(encoding="utf-8"))
            if spec.pop("_target_") == "esvit_pl.backbones.build" and spec["name"] in FIRST_CONV:
                sizes[path.name.removesuffix(".yaml")] = spec
    return sizes


SIZES = _read_sizes()
"""Size -> what ``backbones.build`` makes it of: the numbers of ``conf/backbone/<size>.yaml``, which is their home."""


class ModelForTimm(nn.Module):
    """A backbone with the methods of a timm model and a linear classifier.

    Args:
        backbone: any whose regions are as wide as its pooled feature.
        num_classes: outputs; 0: no classifier, the pooled feature is the output.
        global_pool: "token" for the backbone's own pooled feature, "avg" for the mean of the regions, "" for none of
            both: then the output is (b 1+n c), and there can be no classifier.
        drop_rate: dropout before the classifier.

    Raises:
        ValueError: another `global_pool`, or classes without pooling.

    >>> import timm
    >>> model = timm.create_model("esvit_swin_micro_32px", num_classes=10)
    >>> type(model).__name__, tuple(model(torch.zeros(2, 3, 32, 32)).shape)
    ('ModelForTimm', (2, 10))
    """

    num_prefix_tokens = 1
    num_classes: int
    global_pool: str

    def __init__(
        self, backbone: Backbone, *, num_classes: int = 0, global_pool: str = "token", drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_features = self.head_hidden_size = self.embed_dim = backbone.width
        self.in_chans = backbone.spec["in_chans"]
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Tensor) -> Tensor:
        """(b in_chans h w) -> (b num_classes), or (b c) without classes."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(b in_chans h w) -> (b 1+n c): the backbone's pooled feature, then the regions row by row."""
        pooled, regions, _ = self.backbone(x)
        return torch.cat([pooled[:, None], regions], dim=1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(b 1+n c) of `forward_features` -> (b num_classes); (b c) with `pre_logits`."""
        if self.global_pool:
            x = x[:, 0] if self.global_pool == "token" else x[:, 1:].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; None keeps the pooling."""
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in POOLS:
            raise ValueError(f"global_pool must be 'token', 'avg' or '', got {pool!r}")
        if num_classes and not pool:
            raise ValueError(f"global_pool='' leaves nothing to classify; got num_classes={num_classes}, wanted 0")
        self.num_classes, self.global_pool = num_classes, pool
        like = next(self.backbone.parameters())
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)


def _entrypoint(size: str) -> Callable[..., nn.Module]:
    """What timm calls to build a model of this size."""

    def make(
        *, num_classes: int = 0, global_pool: str = "token", drop_rate: float = 0.0, **overrides: Any
    ) -> ModelForTimm:
        from esvit_pl.backbones import build  # the room's door, which imports this file

        backbone = build(**{**SIZES[size], **overrides})
        return ModelForTimm(backbone, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if kwargs.pop("features_only", False):
            raise ValueError(
                f"{PREFIX}{size} has no features_only; the model's `backbone` gives pooled feature, regions and grid, "
                "and its `last_blocks(x, n)` the pooled features of several blocks"
            )
        return build_model_with_cfg(make, f"{PREFIX}{size}", pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = f"{PREFIX}{size}"
    entrypoint.__doc__ = f"conf/backbone/{size}.yaml as a timm model."
    return entrypoint


def _default_cfg(spec: dict[str, Any]) -> dict[str, Any]:
    """What timm wants to know of weights: how images were prepared, and the layers that depend on it."""
    side = spec.get("img_size", 224)
    return {
        "num_classes": 0,
        "input_size": (spec["in_chans"], side, side),
        "fixed_input_size": False,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": f"backbone.{FIRST_CONV[spec['name']]}",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs({f"{PREFIX}{size}": _default_cfg(spec) for size, spec in SIZES.items()})

for _size in SIZES:
    if not is_model(f"{PREFIX}{_size}"):  # timm would replace a model of this name
        globals()[f"{PREFIX}{_size}"] = register_model(_entrypoint(_size))
