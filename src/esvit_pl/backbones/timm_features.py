"""How features are read from any timm model, given its traits."""

# b images | k prefix tokens (class, distillation, registers) | h, w rows and columns of a map | n = h * w | c channels

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.backbones.interface import Features, Regions
from esvit_pl.backbones.timm_blocks import BLOCKS

Pool = Literal["token", "mean"]


@dataclass(frozen=True)
class Traits:
    """The facts about a timm model that one needs to read features from it; `timm_study.study` finds them.

    Attributes:
        options: arguments that its class takes.
        prefix: k, the number of tokens in front of those of the map.
        class_token: whether the first of these is a class token.
        channels_last: whether a map is (b h w c) and not (b c h w).
        cut: whether layers after the last map of ``feature_info`` are left out.
        plain: whether all blocks work on the same tokens, so that the last norm fits each of them.
        stride: pixels of the image for one step on the last map.
        multiple: sides are padded to a multiple of this number of pixels.
        smallest: the smallest side in pixels that gives a region.
        widths: channels of each block or stage that `last_blocks` can return, earliest first.
        unused: names of the parameters that no feature depends on.
    """

    options: frozenset[str]
    prefix: int
    class_token: bool
    channels_last: bool
    cut: bool
    plain: bool
    stride: int
    multiple: int = 1
    smallest: int = 1
    widths: tuple[int, ...] = ()
    unused: tuple[str, ...] = ()


def padded(x: Tensor, multiple: int) -> Tensor:
    """Images (b c h w) with zeros added right and bottom, until both sides are multiples of `multiple`."""
    pad_h, pad_w = (-side % multiple for side in x.shape[-2:])
    return F.pad(x, (0, pad_w, 0, pad_h)) if pad_h or pad_w else x


def last_tokens(model: nn.Module, traits: Traits, x: Tensor) -> Tensor:
    """(b c h w) -> the last stage's output: tokens (b k+n c), or a map (b h w c) or (b c h w)."""
    timms = cast(Any, model)
    tokens: Tensor = (
        timms.forward_intermediates(x, indices=1, intermediates_only=True)[-1]
        if traits.cut
        else timms.forward_features(x)
    )
    return tokens


def as_features(z: Tensor, model: nn.Module, traits: Traits, pool: Pool, x: Tensor) -> Features:
    """Norm the last stage's output `z` of the padded images `x`, and split it into pooled feature and regions."""
    z = last_norm(model, z.shape[1] if z.ndim == 4 and not traits.channels_last else z.shape[-1])(z)
    if z.ndim == 4:
        z = z if traits.channels_last else z.permute(0, 2, 3, 1)
        regions = z.flatten(1, 2)
        return Features(regions.mean(1), regions, (z.shape[1], z.shape[2]))
    regions = z[:, traits.prefix :]
    grid = grid_of(regions.shape[1], x.shape[-2:], traits.stride)
    return Features(z[:, 0] if pool == "token" else regions.mean(1), regions, grid)


def block_features(model: nn.Module, traits: Traits, pool: Pool, x: Tensor, n: int) -> list[Features]:
    """What is seen after each of the last n blocks or stages of padded images."""
    walk = cast(Any, model).forward_intermediates
    if traits.plain:
        _, blocks = walk(x, indices=n, norm=True, output_fmt="NLC", return_prefix_tokens=traits.prefix > 0)
        tokens = [torch.cat([block[1], block[0]], dim=1) if traits.prefix else block for block in blocks]
        return [as_features(z, model, traits, pool, x) for z in tokens]
    last, maps = walk(x, indices=n)  # all maps are (b c h w)
    last = maps[-1] if traits.cut else last
    earlier = [Features(z.mean((2, 3)), z.flatten(2).mT, (z.shape[2], z.shape[3])) for z in maps[:-1]]
    return [*earlier, as_features(last, model, traits, pool, x)]


def stage_map(model: nn.Module, traits: Traits, x: Tensor, index: int) -> Regions:
    """The region map of one entry of ``feature_info``, of padded images; not for the last one, which has a norm."""
    walk = cast(Any, model).forward_intermediates
    how = {"norm": True} if traits.plain else {}
    (z,) = walk(x, indices=[index], intermediates_only=True, stop_early=True, **how)  # (b c h w)
    regions = z.flatten(2).mT
    regions = last_norm(model, regions.shape[-1])(regions) if traits.plain else regions
    return Regions(regions, (z.shape[2], z.shape[3]))


def last_norm(model: nn.Module, width: int) -> nn.Module:
    """The norm that timm keeps in the classifier, for the layout of the family's map; the identity without such a norm.

    A norm of another width belongs to a hidden layer of the classifier (InceptionNeXt).
    """
    for norm in (getattr(model, "fc_norm", None), getattr(getattr(model, "head", None), "norm", None)):
        weight = getattr(norm, "weight", None)
        if isinstance(norm, nn.Module) and weight is not None and len(weight) == width:
            return norm
    return nn.Identity()


def grid_of(count: int, sides: tuple[int, ...] | torch.Size, stride: int) -> tuple[int, int]:
    """(h, w) of a map of `count` tokens. Every family rounds either all quotients down or all quotients up."""
    down, up = ([side // stride for side in sides], [-(-side // stride) for side in sides])
    for h, w in (down, up):
        if h * w == count:
            return h, w
    raise ValueError(f"{count} tokens do not make a map of {sides[0]} x {sides[1]} px at a stride of {stride} px")


def create(
    name: str,
    options: frozenset[str],
    img_size: int,
    in_chans: int,
    model_args: dict[str, Any],
    drop_path_rate: float = 0.0,
) -> Any:
    """Build the model without a classifier, and with every option of its class that frees the size of its inputs."""
    wanted = {
        "img_size": img_size,
        "dynamic_img_size": True,
        "strict_img_size": False,
        "drop_path_rate": drop_path_rate,
    }
    taken = {option: value for option, value in wanted.items() if option in options}
    block = {"block_fn": BLOCKS[model_args["block_fn"]]} if "block_fn" in model_args else {}
    return timm.create_model(
        name, pretrained=False, num_classes=0, in_chans=in_chans, **{**taken, **model_args, **block}
    )
