"""``experiment=own_images``: settings are chosen from the images and the machine, printed, and composed again.

Hydra composes a config before anybody has seen the images. So a config with ``chosen: auto`` is composed a second time,
with the choices before the words of the user, which win.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from esvit_pl.configs.assemble import construct
from esvit_pl.configs.choices import GIB, Choice, Machine, choose
from esvit_pl.configs.processes import processes
from esvit_pl.configs.weights import naming, say

if TYPE_CHECKING:
    from esvit_pl.datasets import ImageDataset, Splits

AUTO = "auto"
SAMPLE = 200
"""Images whose size is looked at."""
WHOLE = ("augment", "optimizer")
"""Groups whose settings are not chosen where the user has chosen an option of them."""

OF_THIS_RUN = ("experiment", "dry_run", "out", "overwrite", "paths.output_dir")
"""Words that another training with the same settings would not have."""

Compose = Callable[[list[str]], DictConfig]


def of_job(cfg: DictConfig) -> tuple[DictConfig, Splits | None]:
    """`settled` inside a command."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    if cfg.get("chosen") != AUTO:
        return cfg, None
    job = HydraConfig.get()
    return settled(cfg, list(job.overrides.task), lambda words: hydra.compose(str(job.job.config_name), words))


def settled(
    cfg: DictConfig, words: Sequence[str], compose: Compose, images: Splits | None = None
) -> tuple[DictConfig, Splits | None]:
    """The config with settings that fit the images, and the images, so that they are listed once.

    Every process of a training comes to the same result: it depends on the images and on the memory that the device
    has, used or not. A training that is resumed keeps what its checkpoint says.

    Args:
        cfg: composed from `words`; stays as it is unless ``cfg.chosen`` is "auto".
        words: of the user.
        compose: makes a config of words.
        images: in place of ``cfg.dataset``.
    """
    if cfg.get("chosen") != AUTO:
        return cfg, images
    kept = before(cfg)
    if kept is None:
        images = images or construct(cfg, "dataset")
        side, seen = shorter_side(images.train)
        machine = machine_of(cfg, words)
        choices = choose(len(images.train), side, machine, given_of(cfg, words))
        kept = wanted(choices, cfg, words)
        head = (
            f"{len(images.train):,} images, shorter side {side:g} px (median of {seen}), "
            f"a {'GPU' if machine.device == 'cuda' else 'CPU'} with {machine.memory / GIB:.0f} GiB:"
        )
        say(f"experiment=own_images chooses for {head}\n{table(choices, kept)}\n{pinned(kept, words)}")
    else:
        say("experiment=own_images: the settings are those of the checkpoint")
    settled = compose([*kept, *words])
    with open_dict(settled):
        settled.chosen = list(kept)
    return settled, images


# -- what is known


def before(cfg: DictConfig) -> list[str] | None:
    """What was chosen for the training of ``ckpt_path``."""
    from esvit_pl.checkpoints import read_checkpoint

    if cfg.get("ckpt_path") is None:
        return None
    with naming("ckpt_path"):
        chosen = (read_checkpoint(cfg.ckpt_path).config or {}).get("chosen")
    return chosen if isinstance(chosen, list) else None


def shorter_side(images: ImageDataset) -> tuple[float, int]:
    """Median of the shorter sides in pixels, and of how many images; those that cannot be read are left to others."""
    sides = []
    for index in Random(0).sample(range(len(images)), min(len(images), SAMPLE)):
        try:
            sides.append(min(images.size(index)))
        except ValueError:
            continue
    if not sides:
        raise ValueError(f"none of the {min(len(images), SAMPLE)} images that were looked at can be read")
    return median(sides), len(sides)


def machine_of(cfg: DictConfig, words: Sequence[str]) -> Machine:
    """What will train: a GPU if there is one, unless the user says otherwise."""
    import torch

    from esvit_pl.profiling.available_memory import total_bytes

    given = keys(words)
    asked = cfg.trainer.accelerator if {"trainer", "trainer.accelerator"} & given.keys() else "auto"
    if asked not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return Machine("cpu", total_bytes("cpu"), processes(cfg))
    bfloat16 = torch.cuda.get_device_capability()[0] >= 8
    return Machine("cuda", total_bytes("cuda"), processes(cfg), bfloat16)


def keys(words: Sequence[str]) -> dict[str, str]:
    """Name of a setting -> what the user typed."""
    return {name.lstrip("+~"): value for name, _, value in (word.partition("=") for word in words)}


def given_of(cfg: DictConfig, words: Sequence[str]) -> dict[str, Any]:
    """The user's settings, as numbers where they are some; options of groups by their names."""
    settings = {}
    for name, text in keys(words).items():
        value = OmegaConf.select(cfg, name)
        settings[name] = text if OmegaConf.is_config(value) else value
    return settings


# -- what becomes of the choices


def wanted(choices: Sequence[Choice], cfg: DictConfig, words: Sequence[str]) -> list[str]:
    """The chosen settings as words, without those that the user has given and those that his parts do not have."""
    given = keys(words)
    settings = {name: value for choice in choices for name, value in choice.settings.items()}
    return [
        f"{name}={text(value)}"
        for name, value in settings.items()
        if name not in given and not (name.split(".")[0] in WHOLE and name.split(".")[0] in given) and has(cfg, name)
    ]


def has(cfg: DictConfig, name: str) -> bool:
    """Whether the config has such a setting, null or not."""
    *above, last = name.split(".")
    node = OmegaConf.select(cfg, ".".join(above)) if above else cfg
    return OmegaConf.is_dict(node) and last in node


def text(value: Any) -> str:
    """As on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def table(choices: Sequence[Choice], kept: Sequence[str]) -> str:
    """Each topic with its settings and the reason."""
    lines = []
    for topic, settings, reason in choices:
        mine = [f"{name}={text(value)}" for name, value in settings.items()]
        shown = [word for word in mine if word in kept]
        yours = len(mine) - len(shown)
        lines.append(f"  {topic:<11}{' '.join(shown)}{' (the others are given)' if yours and shown else ''}".rstrip())
        lines.append(f"  {'':<11}{reason if shown else 'given'}")
    return "\n".join(lines)


def pinned(kept: Sequence[str], words: Sequence[str]) -> str:
    """The command that is the same training, whatever the images and the machine become."""
    own: Mapping[str, str] = keys(words)
    data = [] if "dataset" in own or "dataset.root" not in own else ["dataset=folder"]
    others = [word for word in words if word.split("=")[0] not in OF_THIS_RUN]
    return f"the same with every setting named:\n{shlex.join(['esvit-pretrain', *data, *kept, *others])}\n"
