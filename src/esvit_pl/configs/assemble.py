"""From a composed config to built parts. The only file that calls `instantiation.build`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs.instantiation import at, build
from esvit_pl.configs.kept_config import kept

if TYPE_CHECKING:
    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.data import ImageDataModule
    from esvit_pl.datasets import Splits
    from esvit_pl.modules import Pretrainer


def construct(cfg: DictConfig, key: str, **parts: Any) -> Any:
    """Build the node at `key`; `parts` are what other nodes became.

    Raises:
        ValueError: what the part says of its settings, with the config key in front.
    """
    node = OmegaConf.select(cfg, key)
    # Two steps: Hydra would turn a dataclass among the parts into a config.
    make = build(node, key=key, _partial_=True, _convert_="all")
    try:
        return make(**parts)
    except (ValueError, TypeError, NotImplementedError, ModuleNotFoundError) as error:
        message = at(key, error, node)
        if "unknown backbone family" in message:
            message += "; one of a package of yours is there if ESVIT_PLUGINS=PACKAGE names it in the environment"
        raise ValueError(message) from error


def images(cfg: DictConfig, given: Splits | None = None) -> tuple[Splits, Recipe]:
    """The images (or those that are `given` in their place), and what is done to them."""
    return given or construct(cfg, "dataset"), construct(cfg, "augment")


def datamodule(cfg: DictConfig, splits: Splits, recipe: Recipe, **overrides: Any) -> ImageDataModule:
    data: ImageDataModule = construct(cfg, "datamodule", dataset=splits, recipe=recipe, seed=cfg.seed, **overrides)
    return data


def pretrainer(cfg: DictConfig, recipe: Recipe) -> Pretrainer:
    """The module with all its parts, checked against the crops and the length of the training."""
    from esvit_pl.augment import EvaluationTransform
    from esvit_pl.datasets import PixelRules

    epochs = check_epochs(cfg)
    check_end(cfg)
    if epochs is None and cfg.trainer.max_steps in (None, -1):
        raise ValueError("a training without an end has no schedules; set trainer.max_epochs or trainer.max_steps")
    if cfg.start_epoch and cfg.init_from is None and cfg.ckpt_path is None:
        raise ValueError(
            f"start_epoch={cfg.start_epoch} leaves out the first epochs, and there are no weights of an earlier "
            "training; give init_from="
        )
    gentle = {name: cfg.init[name] for name in ("warm_heads_epochs", "lr_factor", "layer_decay")}
    for (name, value), usual in zip(gentle.items(), (0, 1, 1), strict=True):
        if value != usual and cfg.init_from is None and cfg.ckpt_path is None:
            raise ValueError(f"init.{name}={value} spares a backbone that has learnt before; give init_from=")
    seed_weights(cfg)
    backbone = construct(cfg, "backbone")
    check_crops(recipe, backbone)
    module: Pretrainer = construct(
        cfg,
        "module",
        backbone=backbone,
        objective=construct(cfg, "loss"),
        optimizer=construct(cfg, "optimizer"),
        num_global=recipe.num_global,
        seed=cfg.seed,
        start_epoch=cfg.start_epoch,
        **gentle,
        transform=EvaluationTransform(recipe, PixelRules.among(plain(cfg).get("dataset"))),
        config=kept(cfg),
    )
    if module.objective.uses_masks and not recipe.mask_cell:
        raise ValueError(
            "loss: this objective hides patches, and augment.mask_cell=0 draws no masks; set it to the side in pixels "
            "of a region of the backbone (32 for a Swin of four stages, the patch for a ViT)"
        )
    if module.objective.two_views and len(recipe.views) != 2:
        raise ValueError(
            f"loss: this objective compares two views of an image, and the crops make {len(recipe.views)} "
            "(augment.num_global, augment.num_local); set augment.num_local=0 or augment=global_only"
        )
    check_colors(recipe, backbone=backbone.spec, loss=getattr(module.objective, "spec", {}))
    if epochs is not None and cfg.ckpt_path is None and not cfg.trainer.fast_dev_run:
        module.check_durations(epochs)
    return module


def seed_weights(cfg: DictConfig) -> None:
    """Seed what initial weights are drawn from; everything later has seeds of its own."""
    from pytorch_lightning import seed_everything

    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, got {cfg.seed}")
    seed_everything(cfg.seed, verbose=False)


def check_epochs(cfg: DictConfig) -> int | None:
    """How many epochs there will be; None for a training that ``trainer.max_steps`` or ``max_time`` ends."""
    epochs = cfg.trainer.max_epochs
    if epochs is None or epochs == -1:
        return None
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"trainer.max_epochs must be a whole number, 1 or more, got {epochs}")
    return epochs


def check_end(cfg: DictConfig) -> None:
    """Refuse a number of steps or a limit of time that leaves nothing to train, or that Lightning cannot read."""
    steps, time = cfg.trainer.get("max_steps"), cfg.trainer.get("max_time")
    if steps is not None and steps != -1 and steps < 1:
        raise ValueError(f"trainer.max_steps must be 1 or more, or -1 for as many as the epochs have, got {steps}")
    is_time = re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(time)) and re.search("[1-9]", str(time))
    if time is not None and not isinstance(time, DictConfig) and not is_time:
        raise ValueError(
            f"trainer.max_time must be days:hours:minutes:seconds, such as '00:12:00:00' for twelve hours, got {time}"
        )


def check_crops(recipe: Recipe, backbone: Backbone) -> None:
    """Refuse crops that are smaller than one patch, and views of another number of channels."""
    smallest = min(recipe.sizes)
    if smallest < backbone.patch_size:
        raise ValueError(
            f"augment: a crop of {smallest} px is smaller than a patch of the backbone ({backbone.patch_size} px); "
            "raise augment.local_size or augment.global_size"
        )
    check_channels(recipe, backbone)


def check_channels(recipe: Recipe, backbone: Backbone) -> None:
    """Refuse views of another number of channels than the backbone takes."""
    channels = backbone.spec.get("in_chans", len(backbone.spec.get("mean", "rgb")))
    if channels != recipe.channels:
        raise ValueError(
            f"backbone.in_chans={channels}, and augment.mean and augment.std of length {recipe.channels} make views of "
            f"as many channels; set backbone.in_chans={recipe.channels}, or give mean and std three numbers each, or "
            "one each for grey views"
        )


def check_colors(recipe: Recipe, **specs: Mapping[str, Any]) -> None:
    """Refuse parts that read colours off normalised views (iGPT, masked patch prediction) with another mean or std."""
    for key, spec in specs.items():
        for name in ("mean", "std"):
            if name in spec and recipe.normalize != "dataset":
                raise ValueError(
                    f"{key}: it reads colours off the views by {key}.mean and {key}.std, and "
                    f"augment.normalize={recipe.normalize} gives each its own; set augment.normalize=dataset"
                )
            if name in spec and [*spec[name]] != [*getattr(recipe, name)]:
                raise ValueError(
                    f"{key}.{name}={[*spec[name]]} differs from augment.{name}={[*getattr(recipe, name)]}, by which it "
                    f"reads colours off the views; give both the same"
                )


def bag(cfg: DictConfig, key: str) -> list[Any]:
    """Every named node of a group that may hold several.

    Raises:
        ValueError: one is a single value.
    """
    for name, node in (cfg.get(key) or {}).items():
        if node is not None and not isinstance(node, DictConfig):
            raise ValueError(f"{key}.{name}={node} is a single value; write {key}.{name}._target_=CLASS, or null")
    return [construct(cfg, f"{key}.{name}") for name, node in (cfg.get(key) or {}).items() if node is not None]


def choice(group: str) -> str | None:
    """Which option of a config group this run has."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().runtime.choices.get(group) if HydraConfig.initialized() else None


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain Python."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
