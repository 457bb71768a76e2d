"""What a checkpoint says about the images that evaluate it: which they are, and how they are prepared.

A setting that is typed wins, and differences are said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from esvit_pl.configs.assemble import construct
from esvit_pl.configs.weights import setting_text
from esvit_pl.specs import plain

if TYPE_CHECKING:
    from esvit_pl.augment import Recipe
    from esvit_pl.checkpoints import Checkpoint

EVALUATION = ("eval_resize", "eval_crop", "eval_interpolation", "eval_squash", "normalize", "mean", "std")
"""Settings of `Recipe` that every evaluation uses."""
_PLACES = {
    **dict.fromkeys(("folder", "imagenet", "cifar10", "voc2012", "ade20k", "spair71k"), "root"),
    "table": "file",
}
"""Where the images of a data set lie; `esvit-convert` leaves it out of what it writes."""
SUPERVISED = ("supervised_size", "supervised_scale", "aspect", "flip")
"""Settings that a probe which trains on augmented images uses, too."""


def preparation(cfg: DictConfig, source: Checkpoint, *, trains: bool = False) -> tuple[Recipe, str]:
    """How images are prepared for the weights of a checkpoint, and a line about it.

    Every setting that ``cfg.augment`` leaves null is that of the checkpoint. Files that name none (those of the
    released code) mean the published preparation, which our defaults are.

    Args:
        trains: whether a probe trains on augmented images.
    """
    from esvit_pl.augment import Recipe

    theirs = source.recipe or Recipe()
    recipe = theirs
    if cfg.get("augment") is not None:
        unsaid = {name: value for name, value in asdict(theirs).items() if cfg.augment.get(name) is None}
        recipe = construct(cfg, "augment", **unsaid)
    names = [*EVALUATION, *(SUPERVISED if trains else ())]
    different = [
        f"augment.{name}={setting_text(getattr(recipe, name))} instead of {setting_text(getattr(theirs, name))}"
        for name in names
        if getattr(recipe, name) != getattr(theirs, name)
    ]
    whose = "the checkpoint's" if source.recipe else "the published one, as the file names none"
    line = f"preparation ({whose}): {described(theirs, trains=trains)}"
    if different:
        whose = "the checkpoint's" if source.recipe else "the published one"
        line = f"preparation: {described(recipe, trains=trains)}; differs from {whose}: {', '.join(different)}"
    return recipe, line


def described(recipe: Recipe, *, trains: bool = False) -> str:
    """The settings of an evaluation in words: ``size 256, crop 224, mean [...], std [...]``."""
    from esvit_pl.augment import Recipe

    words = {
        "dataset": f"mean {setting_text(recipe.mean)}, std {setting_text(recipe.std)}",
        "image": "each image standardised by its own mean and std",
        "view": "each crop standardised by its own mean and std",
    }
    crops = f"size {recipe.eval_resize}{' of both sides' * recipe.eval_squash}, crop {recipe.eval_crop}"
    if recipe.eval_interpolation != Recipe.eval_interpolation:
        crops += f", {recipe.eval_interpolation}"
    if trains:
        crops += f", random crops of {recipe.supervised_size} to train"
    return f"{crops}, {words[recipe.normalize]}"


def keep(cfg: DictConfig, recipe: Recipe) -> None:
    """Put the recipe into the config, so that ``config.yaml`` says how images were prepared."""
    with open_dict(cfg):
        cfg.augment = {"_target_": "esvit_pl.augment.Recipe", **(cfg.get("augment") or {}), **plain(asdict(recipe))}


def take_dataset(cfg: DictConfig, source: Checkpoint, program: str) -> str | None:
    """Where no ``dataset`` is chosen, choose that of the checkpoint's training; returns a line about it.

    Raises:
        ValueError: the checkpoint does not say on which images it was trained.
    """
    if cfg.get("dataset") is not None:
        return None
    theirs = (source.config or {}).get("dataset")
    if theirs is None or not theirs.get(_PLACES.get(name(theirs), "_target_")):
        raise ValueError(
            f"{program} needs dataset=, for example dataset=folder dataset.root=photos/: {source.path} does not say on "
            "which images it was trained"
        )
    with open_dict(cfg):
        cfg.dataset = theirs
    words = [f"dataset={name(cfg.dataset)}"]
    words += [f"dataset.{key}={theirs[key]}" for key in ("root", "file") if theirs.get(key)]
    return f"images (those of the checkpoint's training): {' '.join(words)}"


def name(node: Mapping[Any, Any]) -> str:
    """ "folder": the function that makes a data set."""
    return str(node.get("_target_")).rpartition(".")[2]


def refuse_experiment(program: str, words: Sequence[str]) -> str | None:
    """A sentence, if the words choose one of our experiments, which are settings of a training; else None."""
    names = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("experiment=")]
    ours = [name for name in names if files("esvit_pl.conf").joinpath("experiment", f"{name}.yaml").is_file()]
    if not ours:
        return None
    return (
        f"experiment={ours[0]} holds the settings of a training. {program} takes the data settings of the checkpoint: "
        "its preparation, and its images where dataset= is left out. Leave experiment= out; dataset= and augment= "
        "choose others"
    )
