"""What the user is told about a timm model that cannot be a backbone, and which models can."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import timm
from timm.models import get_arch_name, is_model_pretrained, split_model_name_tag

from esvit_pl.backbones.timm_blocks import BLOCKS

OTHERS = ("resnet50", "convnextv2_atto", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224")
"""Models that work. An error about one that does not work names them."""


LOADING = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"),
    *(
        "features_only",
        "kwargs_filter",
        "scriptable",
        "exportable",
        "no_jit",
        "custom_load",
        "file",
        "url",
        "hf_hub_id",
    ),
)
"""Arguments by which ``timm.create_model`` would read or download files, or make something else than a backbone."""


def check_spec(spec: dict[str, Any]) -> None:
    """Refuse names that timm does not have, numbers out of range, and arguments that are not of the architecture.

    Raises:
        ValueError: the message says what is wanted.
    """
    name = spec["name"]
    if loading := [key for key in LOADING if key in spec]:
        raise ValueError(
            f"timm's {name}: {', '.join(loading)} would read or download files; a backbone is built from numbers "
            "alone, and weights come from ckpt_path= or init_from="
        )
    if get_arch_name(name).startswith("esvit_"):
        raise ValueError(f"{name} is a backbone of our own under a name for timm; use backbone={name[6:]}")
    if not timm.is_model(name):
        raise ValueError(unknown(name))
    base, tag = split_model_name_tag(name)
    if tag and not is_model_pretrained(name):
        known = timm.list_models(f"{base}.*", pretrained=True)
        raise ValueError(f"timm {timm.__version__} has no {name!r}; wanted is {base}, or one of {', '.join(known)}")
    for size in ("img_size", "in_chans"):
        if not isinstance(spec[size], int) or spec[size] < 1:
            raise ValueError(f"timm's {name} needs a whole number {size} of 1 or more, got {spec[size]}")
    if not 0 <= spec["drop_path_rate"] < 1:
        raise ValueError(f"timm's {name} needs drop_path_rate in [0, 1), got {spec['drop_path_rate']}")
    if spec["pool"] not in (None, "token", "mean"):
        raise ValueError(f"timm's {name} needs pool 'token', 'mean' or null, got {spec['pool']!r}")
    if "block_fn" in spec and spec["block_fn"] not in BLOCKS:
        raise ValueError(f"timm's {name} needs block_fn from {', '.join(BLOCKS)}, got {spec['block_fn']!r}")


def unknown(name: str, families: Iterable[str] = ()) -> str:
    """The message about a name that neither timm nor one of our `families` has, with near names."""
    near = get_close_matches(get_arch_name(name), [*families, *timm.list_models()], n=3, cutoff=0.4)
    near = near or [*families, *OTHERS]
    return (
        f"unknown backbone family {name!r}; did you mean {' or '.join(near)}? "
        f"It is no model of timm {timm.__version__} either"
    )


def first_line(error: Exception | None) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".split("\n")[0][:120].rstrip(".: ")


def no_backbone(name: str, why: str) -> str:
    """The message about a model that does not take images of several sizes."""
    return (
        f"timm's {name} cannot be a backbone for crops of several sizes: {why}. Others can, such as {', '.join(OTHERS)}"
    )


def no_recomputing(name: str, why: str) -> str:
    """The message about a model for which ``grad_checkpointing=true`` cannot be."""
    return f"timm's {name} cannot compute blocks again in backward: {why}. Leave grad_checkpointing=false"
