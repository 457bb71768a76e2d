"""Our backbones among timm's models: ``timm.create_model("esvit_cvt_tiny_w7", num_classes=10)``.

timm does not know our families. Importing ``esvit_pl.backbones`` adds every size of ``conf/backbone/`` to its registry,
under names that start with ``esvit_``, and changes nothing else there.
"""

# b images | n regions | c channels

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn

from esvit_pl.backbones.interface import Backbone

__all__ = ["SIZES", "ModelForTimm"]  # timm adds the names that it registers

PREFIX = "esvit_"
POOLS = ("token", "avg", "")


def _swin(width: int, depths: list[int], heads: list[int], window: int, drop: float, **other: Any) -> dict[str, Any]:
    sizes = {"embed_dim": width, "depths": depths, "num_heads": heads, "window": window, "drop_path_rate": drop}
    rest = {"img_size": 224, "patch_size": 4, "in_chans": 3, "mlp_ratio": 4.0, "init": "trunc_normal"}
    return {"name": "swin", **sizes, **rest, **other}


def _cvt(dims: list[int], depths: list[int], heads: list[int], windows: list[int], drop: float) -> dict[str, Any]:
    sizes = {"dims": dims, "depths": depths, "num_heads": heads, "windows": windows, "drop_path_rate": drop}
    return {"name": "cvt", **sizes, "in_chans": 3, "mlp_ratio": 4.0}


def _vil(depths: list[int], heads: list[int], position: str, *, mode: int) -> dict[str, Any]:
    stages = {"patch_sizes": [4, 2, 2, 2], "windows": [7] * 4, "num_globals": [1, 1, 1, 0]}
    attention = {"sliding": [True, True, False, False], "positions": [position] * 4, "mode": mode}
    switches = {"share_projections": True, "norm_embed": True, "avg_pool": False}
    rest = {"img_size": 224, "in_chans": 3, "mlp_ratio": 4.0, "drop_path_rate": 0.1}
    sizes = {"dims": [96, 192, 384, 768], "depths": depths, "num_heads": heads}
    return {"name": "vil", **sizes, **stages, **attention, **switches, **rest}


SIZES: dict[str, dict[str, Any]] = {
    "swin_micro_32px": _swin(48, [1, 1], [3, 6], 8, 0.0, img_size=32, init="fan_in"),
    "swin_micro_w7": _swin(24, [1, 1, 2, 1], [1, 2, 4, 8], 7, 0.0, init="fan_in"),
    "swin_tiny_w7": _swin(96, [2, 2, 6, 2], [3, 6, 12, 24], 7, 0.1),
    "swin_tiny_w14": _swin(96, [2, 2, 6, 2], [3, 6, 12, 24], 14, 0.1),
    "swin_small_w7": _swin(96, [2, 2, 18, 2], [3, 6, 12, 24], 7, 0.2),
    "swin_small_w14": _swin(96, [2, 2, 18, 2], [3, 6, 12, 24], 14, 0.2),
    "swin_base_w7": _swin(128, [2, 2, 18, 2], [4, 8, 16, 32], 7, 0.2),
    "swin_base_w14": _swin(128, [2, 2, 18, 2], [4, 8, 16, 32], 14, 0.2),
    "swin_large_w7": _swin(192, [2, 2, 18, 2], [6, 12, 24, 48], 7, 0.2),
    "swin_large_w14": _swin(192, [2, 2, 18, 2], [6, 12, 24, 48], 14, 0.2),
    "cvt_tiny_w7": _cvt([64, 192, 384, 768], [2, 2, 6, 2], [1, 3, 6, 12], [7, 7, 7, 7], 0.1),
    "cvt_tiny_w14": _cvt([64, 192, 384, 768], [2, 2, 6, 2], [1, 3, 6, 12], [14, 14, 14, 7], 0.1),
    "cvt_small_w7": _cvt([64, 128, 256, 512], [2, 2, 10, 4], [2, 4, 8, 16], [7, 7, 7, 7], 0.2),
    "cvt_small_w14": _cvt([64, 128, 256, 512], [2, 2, 10, 4], [2, 4, 8, 16], [14, 14, 14, 7], 0.2),
    "vil_tiny": _vil([2, 2, 6, 2], [3, 6, 12, 24], "relative", mode=1),
    "vil_small": _vil([1, 2, 8, 1], [3, 3, 6, 12], "absolute", mode=0),
}
"""Size -> what ``backbones.build`` makes it of: the numbers of ``conf/backbone/<size>.yaml``."""

FIRST_CONV = {"swin": "patch_embed.proj", "cvt": "stages.0.embed.proj", "vil": "layer1.0.proj"}
"""Family -> the layer that sees the images; timm fits its weights to another number of channels."""


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
