"""Any timm model as a backbone: ``build("convnextv2_atto")``, ``build("vit_small_patch16_224.dino")``.

timm's families differ in the layout of their maps, in where the last norm sits, and in what sizes of images they take.
`timm_study.study` finds once what a model does; the same few lines (`timm_features`) then read features from all.
"""

# b images | k prefix tokens (class, distillation, registers) | n regions | c channels

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Self, cast

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.layers.attention import Attention as FullAttention
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from timm.models._manipulate import group_with_matcher
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from esvit_pl.backbones.interface import (
    HAVE_ATTENTION,
    Attention,
    Backbone,
    Features,
    Regions,
    check_block_count,
    check_stage,
    hide,
)
from esvit_pl.backbones.recompute import hold_statistics
from esvit_pl.backbones.stages import check_block
from esvit_pl.backbones.timm_errors import check_spec
from esvit_pl.backbones.timm_features import Pool, as_features, block_features, create, last_tokens, padded, stage_map
from esvit_pl.backbones.timm_study import check_recomputes, study

_BEYOND = "classifier?"
"""A parameter's name that no model has and no pattern of timm's matches."""


class TimmBackbone(Backbone):
    """A timm model with random weights; pretrained ones come through ``init_from=`` or `load_backbone`.

    - Plain ViTs and other models with a class token: pooled is the normed class token. Regions are the
      patches alone, without class, distillation and register tokens.
    - All others: pooled is the mean of the normed regions. Where timm keeps the last norm in the classifier (ConvNeXt:
      ``head.norm``; ViTs that pool the mean: ``fc_norm``), it norms every region.
    - Layers that widen the last map for a classifier are left out: the last map is the last one of timm's
      ``feature_info``. EfficientNet-B0 is 320 wide here, without its ``conv_head``.
    - Parameters that no feature depends on (such layers, attention pooling) stay in the state dict, so that timm can
      read it, and have no gradient.
    - Images of any size: position tables are resized to the input, windows stay those of `img_size`, and where the
      family needs it sides are zero-padded right and bottom to a multiple of the patch or of the total stride.

    Args:
        name: name of a timm model, with or without a tag: "resnet50" or "vit_small_patch16_224.dino". The tag chooses
            `mean` and `std`, but no weights.
        img_size: nominal input side in pixels, for families with position tables or windows.
        in_chans: channels of the images.
        drop_path_rate: stochastic depth; must be 0 for families that have none.
        pool: "token" or "mean"; None takes the class token where there is one, and else the mean.
        model_args: further arguments of the model, such as `patch_size` or `depth`; of a ViT also `block_fn`, a name in
            `timm_blocks.BLOCKS`.

    Attributes:
        mean, std: mean and deviation of each channel of the images on which timm trained its weights of that name.
        grad_checkpointing: whether backward computes blocks again, in training mode.

    Raises:
        ValueError: there is no such model (the message has near names); the model does not take images of several sizes
            (it has the reason, and others that do); the model does not have these arguments.

    >>> backbone = TimmBackbone("resnet18", img_size=64)
    >>> backbone(torch.zeros(2, 3, 64, 64)).regions.shape
    torch.Size([2, 4, 512])
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
        check_spec(self.spec)
        self.model_args = json.dumps(model_args, sort_keys=True)
        self.traits = traits = study(name, img_size, in_chans, self.model_args)
        if drop_path_rate and "drop_path_rate" not in traits.options:
            raise ValueError(f"timm's {name} has no stochastic depth; wanted is drop_path_rate=0, got {drop_path_rate}")
        if pool == "token" and not traits.class_token:
            raise ValueError(f"timm's {name} has no class token, so pool='token' cannot be; use pool='mean' or null")
        self.pool: Pool = pool or ("token" if traits.class_token else "mean")
        self.model = create(name, traits.options, img_size, in_chans, model_args, drop_path_rate)
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
            grid = tokens if tokens.ndim == 4 else torch.unflatten(tokens, 1, mask.shape[1:])
            return hide(grid, mask, self.mask_vector).view_as(tokens)

        hook = cast(nn.Module, self.model.patch_embed).register_forward_hook(hidden)
        try:
            return self.forward(x)
        finally:
            hook.remove()

    def learn_mask(self) -> None:
        if not isinstance(self.model, VisionTransformer):
            raise NotImplementedError(
                f"timm's {self.spec['name']} cannot hide patches from itself; ViT, DeiT and Swin can "
                "(backbone=vit_base_p16, deit_small_p16, swin_tiny_w7)"
            )
        self.mask_vector = nn.Parameter(torch.zeros(self.model.embed_dim))

    def freeze_embedding(self) -> None:
        projection = getattr(getattr(self.model, "patch_embed", None), "proj", None)
        if projection is not None:
            projection.requires_grad_(False)
        if isinstance(self.model, VisionTransformer) and self.model.pos_embed is not None:
            table, grid = self.model.pos_embed, list(self.model.patch_embed.grid_size)
            waves = build_sincos2d_pos_embed(grid, dim=table.shape[-1])
            with torch.no_grad():
                table.zero_()[:, -len(waves) :] = waves  # class token and registers have position 0
            table.requires_grad_(False)

    def last_blocks(self, x: Tensor, n: int) -> Tensor:
        """(b c h w) -> (b last_blocks_width(n)), earliest first.

        Plain ViTs: of the last n blocks, each after the last norm, as DINO's probe. Other families: of the last n
        entries of timm's ``feature_info`` (mostly stages), means of their maps, of which the last is normed.
        """
        return self.features_and_blocks(x, n)[1]

    def features_and_blocks(self, x: Tensor, n: int) -> tuple[Features, Tensor]:
        check_block_count(n, len(self.traits.widths))
        if n == 1:
            features = self.forward(x)
            return features, features.pooled
        blocks = self._last(x, n)
        return blocks[-1], torch.cat([block.pooled for block in blocks], dim=-1)

    def block_features(self, x: Tensor) -> Iterator[Features]:
        self.check_activations()
        yield from self._last(x, len(self.traits.widths))

    def _last(self, x: Tensor, n: int) -> list[Features]:
        return block_features(self.model, self.traits, self.pool, padded(x, self.traits.multiple), n)

    def last_blocks_width(self, n: int) -> int:
        check_block_count(n, len(self.traits.widths))
        return sum(self.traits.widths[-n:])

    def depths(self) -> dict[str, int]:
        """As timm groups the model's parameters: its ``group_matcher``."""
        if not hasattr(self.model, "group_matcher"):
            return super().depths()
        parameters = iter([*self.model.named_parameters(), (_BEYOND, None)])
        depths = group_with_matcher(parameters, self.model.group_matcher(coarse=False), reverse=True)
        last = depths.pop(_BEYOND)  # with all that timm leaves to the classifier, as the norm in front of it
        mask = {"mask_vector": 0} if self.mask_vector is not None else {}
        return {f"model.{name}": depth for name, depth in depths.items() if depth < last} | mask

    @property
    def num_stages(self) -> int:
        return len(self.traits.widths)

    def stage_regions(self, x: Tensor, stage: int = -1) -> Regions:
        """The region map after a block of a plain ViT, or of an entry of timm's ``feature_info`` (mostly a stage)."""
        index = check_stage(stage, self.num_stages)
        if index == self.num_stages - 1:
            _, regions, grid = self.forward(x)
            return Regions(regions, grid)
        self.check_activations()
        return stage_map(self.model, self.traits, padded(x, self.traits.multiple), index)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn timm's own switch, which decides what a block is: a layer or a stage.

        Raises:
            ValueError: the model has no such switch, or features keep as much memory with it.
        """
        if enable:
            check_recomputes(self.spec["name"], self.spec["img_size"], self.spec["in_chans"], self.model_args)
        self.grad_checkpointing = enable
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if hasattr(self.model, "set_grad_checkpointing"):  # timm's switch would also work in evaluation
            self.model.set_grad_checkpointing(mode and self.grad_checkpointing)
        return self

    def check_activations(self) -> None:
        """Refuse a model whose activations are lost.

        Some of timm's batch norms contain their activation; torch's `convert_sync_batchnorm` drops it without a word.
        """
        if self.fused_norm is None:
            return
        if not isinstance(self.model.get_submodule(self.fused_norm), (BatchNormAct2d, SyncBatchNormAct)):
            raise ValueError(
                f"torch's synchronised batch norm lost the activations of timm's {self.spec['name']}; train with "
                "trainer.sync_batchnorm=false, convert it with timm.layers.convert_sync_batchnorm, or take a model "
                "whose batch norms are plain, as resnet50"
            )

    def attention(self, x: Tensor, block: int = -1) -> Attention:
        """Attention weights of one block of a plain ViT or DeiT.

        Raises:
            NotImplementedError: for every other family.
        """
        found = self.model.blocks if isinstance(self.model, VisionTransformer) else ()
        blocks = [getattr(item, "attn", None) for item in found]
        if not blocks or any(type(item) is not FullAttention for item in blocks):
            raise NotImplementedError(f"timm's {self.spec['name']} has no attention weights to show; {HAVE_ATTENTION}")
        check_block(block, len(blocks))
        wanted = cast(FullAttention, blocks[block])
        inputs: list[Tensor] = []
        hook = wanted.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
        try:
            grid = self(x).grid
        finally:
            hook.remove()
        query, key, _ = wanted.qkv(inputs[0]).unflatten(-1, (3, wanted.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = wanted.q_norm(query) @ wanted.k_norm(key).mT * wanted.scale
        return Attention.of_all(scores.softmax(-1), grid)


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One number for each channel; images that are not RGB get the mean of the three numbers."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
