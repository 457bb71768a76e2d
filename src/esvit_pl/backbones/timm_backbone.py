"""Any timm model as a backbone: ``build("convnextv2_atto")``, ``build("vit_small_patch16_224.dino")``.

timm's families differ in the layout of their maps, in where the last norm sits, in what sizes of images they take. What
a model does is found once by running it on the meta device, which knows shapes and no numbers (`study`); the same few
lines then read features from all of them.
"""

# b images | k prefix tokens (class, distillation, registers) | h, w rows and columns of a map | n = h * w | c channels

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache
from typing import Any, Literal, Self, cast

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention as FullAttention
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from timm.models import get_arch_name, is_model_pretrained, split_model_name_tag
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from esvit_pl.backbones.interface import Attention, Backbone, Features, check_block_count, hide
from esvit_pl.backbones.recompute import hold_statistics

Pool = Literal["token", "mean"]

NEAR_ONES = (
    "convmixer_768_32",
    "convnextv2_atto",
    "davit_tiny",
    "deit_tiny_patch16_224",
    "efficientnet_b0",
    "eva02_tiny_patch14_224",
    "focalnet_tiny_srf",
    "mobilenetv3_small_100",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnety_002",
    "resnet50",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "tiny_vit_5m_224",
    "twins_svt_small",
    "vit_tiny_patch16_224",
    "xcit_nano_12_p8_224",
)
"""Models of many families that do work; an error about one that does not names those of a like name."""


class TimmBackbone(Backbone):
    """A timm model, its weights initialised at random; pretrained ones come through ``init_from=``.

    - Plain ViTs and other models with a class token: pooled is the normed class token. Class, distillation and register
      tokens are no regions.
    - All others: pooled is the mean of the normed regions. Where timm keeps the last norm in the classifier (ConvNeXt:
      ``head.norm``; ViTs that pool the mean: ``fc_norm``), it norms every region.
    - What widens the last map for a classifier alone is left out: the last map is the last one of timm's
      ``feature_info``. EfficientNet-B0 is 320 wide here, without its ``conv_head``.
    - Parameters that no feature depends on (such layers, attention pooling) stay in the state dict, so that it remains
      timm's, and ask for no gradient.
    - Images of any size: position tables are resized to the input, windows stay those of `img_size`, and where the
      family needs it sides are zero-padded right and bottom to a multiple of the patch or of the total stride.

    Args:
        name: of a timm model, with or without a tag, as "resnet50" or "vit_small_patch16_224.dino". The tag chooses
            `mean` and `std`, and no weights.
        img_size: nominal input side in pixels, for families with position tables or windows.
        in_chans: channels of the images.
        drop_path_rate: stochastic depth; only 0 for families without.
        pool: "token" or "mean"; None is the class token where there is one, and else the mean.
        model_args: further arguments of the model, as `patch_size` or `depth`.

    Attributes:
        mean, std: of each channel of the images that timm's weights of that name were trained on.
        grad_checkpointing: whether backward computes blocks again, in training mode.

    Raises:
        ValueError: no such model, with near names; a model that does not take images of several sizes, with the reason
            and others that do; arguments that the model does not have.
    """

    grad_checkpointing = False

    def __init__(
        self,
        name: str,
        *,
        img_size: int = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        pool: Pool | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__()
        self.spec = {
            "name": name,
            "img_size": img_size,
            "in_chans": in_chans,
            "drop_path_rate": drop_path_rate,
            "pool": pool,
            **model_args,
        }
        _check(self.spec)
        self.model_args = json.dumps(model_args, sort_keys=True)
        self.traits = traits = study(name, img_size, in_chans, self.model_args)
        if drop_path_rate and "drop_path_rate" not in traits.options:
            raise ValueError(f"timm's {name} has no stochastic depth; wanted is drop_path_rate=0, got {drop_path_rate}")
        if pool == "token" and not traits.class_token:
            raise ValueError(f"timm's {name} has no class token, so pool='token' cannot be; use pool='mean' or null")
        self.pool: Pool = pool or ("token" if traits.class_token else "mean")
        self.model = _create(name, traits.options, img_size, in_chans, model_args, drop_path_rate)
        for parameter in traits.unused:
            self.model.get_parameter(parameter).requires_grad_(False)
        self.fused_norm = next((key for key, m in self.model.named_modules() if isinstance(m, BatchNormAct2d)), None)
        self.width = self.region_width = traits.widths[-1]
        self.patch_size = traits.smallest
        self.mean, self.std = (_per_channel(self.model.pretrained_cfg[key], in_chans) for key in ("mean", "std"))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        if mask is not None:
            return self.forward_masked(x, mask)
        self.check_activations()
        if self.grad_checkpointing:
            hold_statistics(self.model)
        x = padded(x, self.traits.multiple)
        return as_features(last_tokens(self.model, self.traits, x), self.model, self.traits, self.pool, x)

    def forward_masked(self, x: Tensor, mask: Tensor) -> Features:
        """`forward`, with patch embeddings hidden where the mask is True."""
        if not isinstance(self.model, VisionTransformer):
            self.learn_mask()  # says which families can

        def hidden(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
            # (b h w c) where timm resizes position tables to the input, (b n c) elsewhere
            grid = tokens if tokens.ndim == 4 else tokens.unflatten(1, mask.shape[1:])
            return hide(grid, mask, self.mask_vector).view_as(tokens)

        hook = cast(nn.Module, self.model.patch_embed).register_forward_hook(hidden)
        try:
            return self(x)
        finally:
            hook.remove()

    def learn_mask(self) -> None:
        if not isinstance(self.model, VisionTransformer):
            raise NotImplementedError(
                f"timm's {self.spec['name']} cannot hide patches from itself; ViT, DeiT and Swin can "
                "(backbone=vit_base_p16, deit_small_p16, swin_tiny_w7)"
            )
        self.mask_vector = nn.Parameter(torch.zeros(self.model.embed_dim))

    def last_blocks(self, x: Tensor, n: int) -> Tensor:
        """(b c h w) -> (b last_blocks_width(n)), earliest first.

        Plain ViTs: of the last n blocks, each after the last norm, as DINO's probe. Other families: of the last n
        entries of timm's ``feature_info`` (mostly stages), means of their maps, of which the last is normed.
        """
        check_block_count(n, len(self.traits.widths))
        if n == 1:
            return self(x).pooled
        return torch.cat(pooled_blocks(self.model, self.traits, self.pool, padded(x, self.traits.multiple), n), dim=-1)

    def last_blocks_width(self, n: int) -> int:
        check_block_count(n, len(self.traits.widths))
        return sum(self.traits.widths[-n:])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """By timm's own switch, which says what a block is: a layer, a stage.

        Raises:
            ValueError: the model has none, or its switch changes nothing of what features need.
        """
        if enable:
            check_recomputes(self.spec["name"], self.spec["img_size"], self.spec["in_chans"], self.model_args)
        self.grad_checkpointing = enable
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if hasattr(self.model, "set_grad_checkpointing"):  # timm's own works in evaluation too
            self.model.set_grad_checkpointing(mode and self.grad_checkpointing)
        return self

    def check_activations(self) -> None:
        """Refuse what torch makes of a norm that contains its activation: a synchronised one without it, silently."""
        if self.fused_norm is None:
            return
        if not isinstance(self.model.get_submodule(self.fused_norm), (BatchNormAct2d, SyncBatchNormAct)):
            raise ValueError(
                f"torch's synchronised batch norm lost the activations of timm's {self.spec['name']}; train with "
                "trainer.sync_batchnorm=false, convert it with timm.layers.convert_sync_batchnorm, or take a model "
                "whose batch norms are plain, as resnet50"
            )

    def attention(self, x: Tensor, block: int = -1) -> Attention:
        """Weights of one block of a plain ViT or DeiT, (b heads k+n k+n): the k prefix tokens come first.

        Raises:
            NotImplementedError: for every other family.
        """
        found = self.model.blocks if isinstance(self.model, VisionTransformer) else ()
        blocks = [getattr(item, "attn", None) for item in found]
        if not blocks or any(type(item) is not FullAttention for item in blocks):
            raise NotImplementedError(
                f"timm's {self.spec['name']} has no attention weights to show; ViT and DeiT have, Swin, CvT and ViL's "
                "full blocks (backbone=vit_base_p16, deit_small_p16, swin_tiny_w7, cvt_tiny_w7, vil_tiny)"
            )
        if not -len(blocks) <= block < len(blocks):
            raise ValueError(f"attention needs a block between {-len(blocks)} and {len(blocks) - 1}, got {block}")
        wanted = cast(FullAttention, blocks[block])
        inputs: list[Tensor] = []
        hook = wanted.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
        try:
            grid = self(x).grid
        finally:
            hook.remove()
        query, key, _ = wanted.qkv(inputs[0]).unflatten(-1, (3, wanted.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = wanted.q_norm(query) @ wanted.k_norm(key).mT * wanted.scale
        return Attention(scores.softmax(-1), grid)


@dataclass(frozen=True)
class Traits:
    """What has to be known of a timm model to read features from it; `study` finds it.

    Attributes:
        options: arguments that its class takes.
        prefix: k, tokens in front of the map's.
        class_token: whether the first of them is a class token.
        channels_last: whether a map is (b h w c) and not (b c h w).
        cut: whether layers after the last map of ``feature_info`` are left out.
        plain: whether all blocks work on the same tokens, so that the last norm fits each of them.
        stride: pixels of the image for one step on the last map.
        multiple: sides are padded to a multiple of it.
        smallest: side in pixels that still gives a region.
        widths: channels of what `last_blocks` can give, earliest first.
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
    """(b c h w), zeros right and bottom until both sides are multiples."""
    pad_h, pad_w = (-side % multiple for side in x.shape[-2:])
    return F.pad(x, (0, pad_w, 0, pad_h)) if pad_h or pad_w else x


def last_tokens(model: nn.Module, traits: Traits, x: Tensor) -> Tensor:
    """(b c h w) -> what the last stage gives: (b k+n c) tokens or a map, (b h w c) or (b c h w)."""
    if traits.cut:
        return cast(Any, model).forward_intermediates(x, indices=1, intermediates_only=True)[-1]
    return cast(Any, model).forward_features(x)


def as_features(z: Tensor, model: nn.Module, traits: Traits, pool: Pool, x: Tensor) -> Features:
    """Norm the tokens or the map `z` that the padded images `x` became, and tell pooled feature and regions apart."""
    z = last_norm(model, z.shape[1] if z.ndim == 4 and not traits.channels_last else z.shape[-1])(z)
    if z.ndim == 4:
        z = z if traits.channels_last else z.permute(0, 2, 3, 1)
        regions = z.flatten(1, 2)
        return Features(regions.mean(1), regions, (z.shape[1], z.shape[2]))
    regions = z[:, traits.prefix :]
    grid = grid_of(regions.shape[1], x.shape[-2:], traits.stride)
    return Features(z[:, 0] if pool == "token" else regions.mean(1), regions, grid)


def pooled_blocks(model: nn.Module, traits: Traits, pool: Pool, x: Tensor, n: int) -> list[Tensor]:
    """The pooled features of the last n blocks or stages, from padded images."""
    walk = cast(Any, model).forward_intermediates
    if traits.plain:
        _, blocks = walk(x, indices=n, norm=True, output_fmt="NLC", return_prefix_tokens=traits.prefix > 0)
        tokens = [torch.cat([block[1], block[0]], dim=1) if traits.prefix else block for block in blocks]
        return [as_features(z, model, traits, pool, x).pooled for z in tokens]
    last, maps = walk(x, indices=n)  # all maps are (b c h w)
    last = maps[-1] if traits.cut else last
    return [*(z.mean((2, 3)) for z in maps[:-1]), as_features(last, model, traits, pool, x).pooled]


def last_norm(model: nn.Module, width: int) -> nn.Module:
    """The norm that timm keeps in the classifier, in the layout of the family's map; the identity if there is none.

    A norm of another width belongs to a hidden layer of the classifier (InceptionNeXt).
    """
    for norm in (getattr(model, "fc_norm", None), getattr(getattr(model, "head", None), "norm", None)):
        weight = getattr(norm, "weight", None)
        if isinstance(norm, nn.Module) and weight is not None and len(weight) == width:
            return norm
    return nn.Identity()


def grid_of(count: int, sides: tuple[int, ...] | torch.Size, stride: int) -> tuple[int, int]:
    """(h, w) of a map of `count` tokens: every family rounds either all quotients down or all up."""
    down, up = ([side // stride for side in sides], [-(-side // stride) for side in sides])
    for h, w in (down, up):
        if h * w == count:
            return h, w
    raise ValueError(f"{count} tokens are no map of {sides[0]} x {sides[1]} px at a stride of {stride} px")


def unknown(name: str, families: Iterable[str] = ()) -> str:
    """What to say of a name that neither timm nor one of our `families` has, with the near ones."""
    near = get_close_matches(get_arch_name(name), [*families, *timm.list_models()], n=3, cutoff=0.4)
    near = near or [*families, *NEAR_ONES[:3]]
    return (
        f"unknown backbone family {name!r}; did you mean {' or '.join(near)}? "
        f"It is no model of timm {timm.__version__} either"
    )


@lru_cache(maxsize=128)
def study(name: str, img_size: int, in_chans: int, model_args: str) -> Traits:
    """Find the traits of a model by running it on the meta device, at `img_size` and at sides that fit badly.

    Args:
        model_args: further arguments, as JSON.
    """
    arguments = json.loads(model_args)
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        try:
            options = _options(_create(name, frozenset(), img_size, in_chans, arguments))
            model = _create(name, options, img_size, in_chans, arguments).eval()
        except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError) as error:
            raise ValueError(f"timm cannot build {name} with {arguments or 'these sizes'}: {_said(error)}") from error
        traits = _static_traits(name, model, options)
        traits = _with(traits, multiple=_multiple(name, model, traits, img_size, in_chans))
        traits = _with(traits, smallest=_smallest(model, traits, img_size, in_chans))
        side = _small_side(traits, img_size)
        return _with(traits, **_widths_and_unused(model, traits, torch.zeros(2, in_chans, side, side)))


@lru_cache(maxsize=128)
def check_recomputes(name: str, img_size: int, in_chans: int, model_args: str) -> None:
    """Refuse a model whose ``set_grad_checkpointing`` is none, by running it on the meta device.

    Args:
        model_args: further arguments, as JSON.

    Raises:
        ValueError: it has none; features keep as much as without; or backward changes buffers, which forward did.
    """
    traits = study(name, img_size, in_chans, model_args)
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        model = _create(name, traits.options, img_size, in_chans, json.loads(model_args)).train()
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
            (seen.pooled.sum() + seen.regions.sum()).backward()
        except Exception as error:  # whatever a family's code raises is the answer that is asked for
            raise ValueError(_keeps(name, f"timm's code ends with {_said(error)}")) from error
        if after >= before:
            raise ValueError(_keeps(name, "its switch changes nothing of what the features need"))
        moved = [key for key, buffer in model.named_buffers() if buffer._version != versions[key]]
        if moved:
            raise ValueError(_keeps(name, f"backward would change its {moved[0]} a second time"))


def _kept(forward: Callable[[], Features]) -> tuple[int, Features]:
    """Values that `forward` keeps for backward, and what it gives."""
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
        raise ValueError(_refusal(name, "timm tells nothing of its stages (no feature_info)"))
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
    """The smallest divisor of the total stride to whose multiples sides must be padded."""
    small = _small_side(traits, img_size)
    sizes = [(img_size, img_size), (small, small), (small + 1, small + 1), (small + 3, img_size)]
    for multiple in (divisor for divisor in range(1, traits.stride + 1) if traits.stride % divisor == 0):
        candidate = _with(traits, multiple=multiple)
        # From the badly fitting ones on: they fail at once where they do.
        if all(_trial(model, candidate, size, in_chans) is None for size in reversed(sizes)):
            return multiple
    trials = ((size, _trial(model, traits, size, in_chans)) for size in sizes)
    (height, width), error = next((size, error) for size, error in trials if error is not None)
    raise ValueError(_refusal(name, f"at {height} x {width} px timm's code ends with {_said(error)}"))


def _smallest(model: nn.Module, traits: Traits, img_size: int, in_chans: int) -> int:
    """The smallest side that gives a region, found by doubling."""
    most = _small_side(traits, img_size)
    side = traits.multiple if traits.multiple > 1 else 8
    while side < most and _trial(model, traits, (side, side), in_chans) is not None:
        side *= 2
    return min(side, most)


def _small_side(traits: Traits, img_size: int) -> int:
    """Side of a local crop that goes with `img_size`: 96 px for 224, but one step on the last map at least."""
    return min(max(3 * img_size // 7, traits.stride), img_size)


def _widths_and_unused(model: nn.Module, traits: Traits, x: Tensor) -> dict[str, Any]:
    """In training mode: in evaluation some families read a cache in the place of a parameter."""
    model.train()
    x = padded(x, traits.multiple)
    features = as_features(last_tokens(model, traits, x), model, traits, "mean", x)
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    total = features.pooled.sum() + features.regions.sum()
    slopes = torch.autograd.grad(total, list(learning.values()), allow_unused=True)
    blocks = len(cast(Any, model.feature_info))
    return {
        "unused": tuple(name for name, slope in zip(learning, slopes, strict=True) if slope is None),
        "widths": tuple(block.shape[-1] for block in pooled_blocks(model, traits, "mean", x, blocks)),
    }


def _trial(model: nn.Module, traits: Traits, size: tuple[int, int], in_chans: int) -> Exception | None:
    """What goes wrong with images of this size; None: nothing."""
    x = padded(torch.zeros(2, in_chans, *size), traits.multiple)
    try:
        with torch.no_grad():
            z = last_tokens(model, traits, x)
            if not isinstance(z, Tensor):
                raise TypeError(f"its features are a {type(z).__name__} and no single map")
            features = as_features(z, model, traits, "mean", x)
    except Exception as error:  # whatever a family's code raises is the answer that is asked for
        return error
    return None if features.regions.shape[1] else ValueError("there is no region left")


def _create(
    name: str,
    options: frozenset[str],
    img_size: int,
    in_chans: int,
    model_args: dict[str, Any],
    drop_path_rate: float = 0.0,
) -> Any:
    """The model without a classifier, with as much freedom in the size of its inputs as its class offers."""
    wanted = {
        "img_size": img_size,
        "dynamic_img_size": True,
        "strict_img_size": False,
        "drop_path_rate": drop_path_rate,
    }
    taken = {option: value for option, value in wanted.items() if option in options}
    return timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_chans, **{**taken, **model_args})


def _options(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that the model's class takes, those included that it hands on to its base class."""
    return frozenset(_arguments(type(model)))


def _arguments(family: type) -> Iterator[str]:
    for cls in family.__mro__:
        if "__init__" in vars(cls):
            parameters = inspect.signature(cast(Callable[..., Any], vars(cls)["__init__"])).parameters
            yield from parameters
            if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
                return


def _with(traits: Traits, **changes: Any) -> Traits:
    return Traits(**{**vars(traits), **changes})


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """As many numbers as channels; for other images than RGB each is their mean."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _said(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:120].rstrip(".: ")


def _refusal(name: str, why: str) -> str:
    near = sorted(NEAR_ONES, key=lambda other: SequenceMatcher(None, name, other).ratio(), reverse=True)[:3]
    return (
        f"timm's {name} cannot be a backbone for crops of several sizes: {why}. Near ones that can: {', '.join(near)}"
    )


def _keeps(name: str, why: str) -> str:
    return f"timm's {name} cannot compute blocks again in backward: {why}. Leave grad_checkpointing=false"


def _check(spec: dict[str, Any]) -> None:
    name = spec["name"]
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
