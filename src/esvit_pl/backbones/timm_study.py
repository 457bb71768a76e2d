"""Find out what a timm model does by running it on the meta device.

That device knows shapes and no numbers, so a trial takes neither memory nor much time.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from esvit_pl.backbones.interface import Features
from esvit_pl.backbones.recompute import hold_statistics
from esvit_pl.backbones.timm_errors import first_line, no_backbone, no_recomputing
from esvit_pl.backbones.timm_features import Traits, as_features, create, last_tokens, padded, pooled_blocks


@lru_cache(maxsize=128)
def study(name: str, img_size: int, in_chans: int, model_args: str) -> Traits:
    """Find the traits of a model: run it at `img_size`, and at sides that are no multiple of anything.

    Args:
        name: name of a timm model.
        img_size: nominal side of the images in pixels.
        in_chans: channels of the images.
        model_args: further arguments as JSON, which a cache can compare.

    Raises:
        ValueError: timm cannot build it, or it does not take images of several sizes.
    """
    arguments = json.loads(model_args)
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        try:
            options = _options(create(name, frozenset(), img_size, in_chans, arguments))
            model = create(name, options, img_size, in_chans, arguments).eval()
        except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError) as error:
            raise ValueError(
                f"timm cannot build {name} with {arguments or 'these sizes'}: {first_line(error)}"
            ) from error
        traits = _static_traits(name, model, options)
        traits = replace(traits, multiple=_multiple(name, model, traits, img_size, in_chans))
        traits = replace(traits, smallest=_smallest(model, traits, img_size, in_chans))
        side = _small_side(traits, img_size)
        return replace(traits, **_widths_and_unused(model, traits, torch.zeros(2, in_chans, side, side)))


@lru_cache(maxsize=128)
def check_recomputes(name: str, img_size: int, in_chans: int, model_args: str) -> None:
    """Refuse a model that cannot compute blocks again in backward; arguments as of `study`.

    Raises:
        ValueError: it has no ``set_grad_checkpointing``; features keep as much memory with it as without; or backward
            changes buffers a second time.
    """
    traits = study(name, img_size, in_chans, model_args)
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        model = create(name, traits.options, img_size, in_chans, json.loads(model_args)).train()
        side = _small_side(traits, img_size)
        x = padded(torch.zeros(2, in_chans, side, side), traits.multiple)

        def features() -> Features:
            return as_features(last_tokens(model, traits, x), model, traits, "mean", x)

        try:
            before, _ = _kept(features)
            model.set_grad_checkpointing(True)
            hold_statistics(model)
            after, seen = _kept(features)
            versions = {key: buffer._version for key, buffer in model.named_buffers()}
            torch.autograd.backward(seen.pooled.sum() + seen.regions.sum())
        except Exception as error:  # whatever a family's code raises is the answer
            raise ValueError(no_recomputing(name, f"timm's code ends with {first_line(error)}")) from error
        if after >= before:
            raise ValueError(no_recomputing(name, "its switch changes nothing of what the features need"))
        moved = [key for key, buffer in model.named_buffers() if buffer._version != versions[key]]
        if moved:
            raise ValueError(no_recomputing(name, f"backward would change its {moved[0]} a second time"))


def _kept(forward: Callable[[], Features]) -> tuple[int, Features]:
    """How many values `forward` keeps for backward, and what it returns."""
    sizes: dict[int, int] = {}

    def note(kept: Tensor) -> Tensor:
        sizes[id(kept)] = kept.numel()
        return kept

    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        features = forward()
    return sum(sizes.values()), features


def _static_traits(name: str, model: nn.Module, options: frozenset[str]) -> Traits:
    info = getattr(model, "feature_info", None)
    walk = getattr(model, "forward_intermediates", None)
    if not info or walk is None:
        raise ValueError(no_backbone(name, "timm tells nothing of its stages (no feature_info)"))
    cut = info[-1]["num_chs"] != model.num_features
    tokens = getattr(model, "embeds", model)  # NaFlexViT keeps them there
    return Traits(
        options=options,
        prefix=getattr(model, "num_prefix_tokens", 0),
        class_token=getattr(tokens, "cls_token", None) is not None,
        channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC" and not cut,
        cut=cut,
        plain="return_prefix_tokens" in inspect.signature(walk).parameters,
        stride=info[-1]["reduction"],
    )


def _multiple(name: str, model: nn.Module, traits: Traits, img_size: int, in_chans: int) -> int:
    """The smallest divisor of the total stride such that the model takes all images padded to its multiples."""
    small = _small_side(traits, img_size)
    sizes = [(img_size, img_size), (small, small), (small + 1, small + 1), (small + 3, img_size)]
    for multiple in (divisor for divisor in range(1, traits.stride + 1) if traits.stride % divisor == 0):
        candidate = replace(traits, multiple=multiple)
        # The last sizes fit worst, so they fail first.
        if all(_trial(model, candidate, size, in_chans) is None for size in reversed(sizes)):
            return multiple
    trials = ((size, _trial(model, traits, size, in_chans)) for size in sizes)
    (height, width), error = next((size, error) for size, error in trials if error is not None)
    raise ValueError(no_backbone(name, f"at {height} x {width} px timm's code ends with {first_line(error)}"))


def _smallest(model: nn.Module, traits: Traits, img_size: int, in_chans: int) -> int:
    """The smallest side that gives a region, found by doubling."""
    most = _small_side(traits, img_size)
    side = traits.multiple if traits.multiple > 1 else 8
    while side < most and _trial(model, traits, (side, side), in_chans) is not None:
        side *= 2
    return min(side, most)


def _small_side(traits: Traits, img_size: int) -> int:
    """Side of a local crop beside global ones of `img_size`: 96 px for 224, but at least one step on the last map."""
    return min(max(3 * img_size // 7, traits.stride), img_size)


def _widths_and_unused(model: nn.Module, traits: Traits, x: Tensor) -> dict[str, Any]:
    """The last two traits, from one pass forward and backward."""
    model.train()  # in evaluation some families read a cache in place of a parameter
    x = padded(x, traits.multiple)
    features = as_features(last_tokens(model, traits, x), model, traits, "mean", x)
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    total = features.pooled.sum() + features.regions.sum()
    slopes = torch.autograd.grad(total, list(learning.values()), allow_unused=True)
    blocks = len(cast(Any, model.feature_info))
    return {
        "unused": tuple(name for name, slope in zip(learning, slopes, strict=True) if slope is None),
        "widths": tuple(block.shape[-1] for block in pooled_blocks(model, traits, "mean", x, blocks)[0]),
    }


def _trial(model: nn.Module, traits: Traits, size: tuple[int, int], in_chans: int) -> Exception | None:
    """The error that images of this size cause; None if the model takes them."""
    x = padded(torch.zeros(2, in_chans, *size), traits.multiple)
    try:
        with torch.no_grad():
            z = last_tokens(model, traits, x)
            if not isinstance(z, Tensor):
                raise TypeError(f"its features are a {type(z).__name__} and no single map")
            features = as_features(z, model, traits, "mean", x)
    except Exception as error:  # whatever a family's code raises is the answer
        return error
    return None if features.regions.shape[1] else ValueError("there is no region left")


def _options(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that the model's class takes, with those that it hands on to its base class."""
    return frozenset(_arguments(type(model)))


def _arguments(family: type) -> Iterator[str]:
    for cls in family.__mro__:
        if "__init__" in vars(cls):
            parameters = inspect.signature(cast(Callable[..., Any], vars(cls)["__init__"])).parameters
            yield from parameters
            if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
                return
