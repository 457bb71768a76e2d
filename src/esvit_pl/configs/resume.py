"""Going on from a checkpoint of esvit-pretrain: what must be as it was, where it stands, and in which folder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esvit_pl.configs.assemble import check_epochs, plain
from esvit_pl.configs.instantiation import defaults
from esvit_pl.configs.kept_config import kept, recovered
from esvit_pl.configs.processes import processes
from esvit_pl.configs.resume_mode import goes_on_in_its_folder
from esvit_pl.configs.run_folder import goes_on_in
from esvit_pl.runs.claim import run_of

if TYPE_CHECKING:
    from esvit_pl.checkpoints.resuming import Batches, Difference
    from esvit_pl.data import ImageDataModule
    from esvit_pl.modules import Pretrainer


@dataclass(frozen=True)
class Resumed:
    """Where a training goes on.

    Attributes:
        path: of the checkpoint.
        step: optimizer steps that are done, of `steps`.
        epochs: of the whole training; None where ``trainer.max_steps`` ends it.
        folder: of the run, if it goes on in its own folder.
        allowed: lines, one for each difference that ``resume.allow`` lets pass.

    >>> print(Resumed("a/checkpoints/last.ckpt", step=219, steps=876, per_epoch=73, epochs=12, folder=Path("a")))
    resuming a from epoch 3 (4th of 12), step 219 of 876
    """

    path: str
    step: int
    steps: int
    per_epoch: int
    epochs: int | None
    folder: Path | None = None
    allowed: tuple[str, ...] = ()

    def __str__(self) -> str:
        epoch = self.step // self.per_epoch
        which = f" ({_ordinal(epoch + 1)} of {self.epochs})" if self.epochs else ""
        steps = f"step {self.step:,} of {self.steps:,}"
        where = f" from epoch {epoch}{which}, {steps}" if self.step < self.steps else f", which is finished: {steps}"
        return "\n".join([f"resuming {self.folder or self.path}{where}", *self.allowed])


def check(cfg: DictConfig, module: Pretrainer, data: ImageDataModule, path: str) -> Resumed:
    """Compare this training with that of the checkpoint, and prepare its parts for the differences that are allowed.

    Raises:
        ValueError: all differences that would change the result, with both values.
    """
    from esvit_pl.checkpoints.load_weights import misfits
    from esvit_pl.checkpoints.pickled import read_pickled
    from esvit_pl.checkpoints.resuming import (
        batch_differences,
        content_differences,
        flat,
        image_differences,
        is_in,
        lacking,
        setting_differences,
    )

    content = read_pickled(path, tensors=False)
    if lacks := lacking(content):
        raise ValueError(
            f"{path} lacks {', '.join(lacks)}, so there is no training to go on with; take another checkpoint of the "
            "run, or begin a new training from its weights with init_from= in place of ckpt_path="
        )
    saved, now = content["esvit_pl"], plain(cfg)
    was = recovered(saved["config"] or {}, now, kept(cfg))
    found: list[Difference] = []
    if was:
        specs = [{"backbone": saved["backbone"], "loss": saved["loss"]}, _specs(module)]
        before, after = _in_epochs(module, was, now)
        found += setting_differences(before, after, specs, _defaults(now))
    here, there = _batches(cfg, data), _saved_batches(content.get("ImageDataModule"), was)
    moved: list[Difference] = []
    if there is not None:
        moved = image_differences(content["ImageDataModule"], data.state_dict())
        if other := content_differences(content["ImageDataModule"], data.state_dict()):
            found += other
            data.accepts_other_content = True  # resume.allow decides, below
        moved += batch_differences(there, here, was, now)
    allow = [cfg.resume.allow] if isinstance(cfg.resume.allow, str) else list(cfg.resume.allow or [])
    known = {key for config in (was, now) for key, _ in flat(config)}
    known |= {key for difference in (*found, *moved) for key in difference.keys}
    for name in allow:
        if not any(is_in(key, name) for key in known):
            raise ValueError(f"resume.allow: there is no setting {name}; name settings or groups, such as [augment]")
    refused = [difference for difference in (*found, *moved) if not difference.is_allowed(allow)]
    weights = misfits(content["state_dict"], module.state_dict())
    if refused or weights:
        raise ValueError(_refusal(path, refused, weights))
    in_place = goes_on_in(cfg, Path(cfg.paths.output_dir))
    step: int = content["global_step"]
    if there is not None and (others := _other_order(moved, content["ImageDataModule"], data)):
        if step % there.steps_per_epoch or (moved and in_place):
            raise ValueError(_unmovable(others, step, there, bool(moved) and in_place))
        data.accepts_other_images = True
        if moved:
            step = step // there.steps_per_epoch * here.steps_per_epoch
            module.counts_anew = True
    epochs = check_epochs(cfg)
    steps = here.steps_per_epoch * epochs if epochs else cfg.trainer.max_steps
    allowed = tuple(f"allowed to differ: {difference}" for difference in (*found, *moved))
    return Resumed(path, step, steps, here.steps_per_epoch, epochs, run_of(path) if in_place else None, allowed)


def steps_kept(cfg: DictConfig, folder: Path, resumed: Resumed | None) -> int | None:
    """Steps after which a run goes on in its own folder; 0 if one begins there again, None if it is a new run's."""
    if resumed is not None and resumed.folder is not None:
        return resumed.step
    return 0 if goes_on_in_its_folder(cfg) and (folder / "results.json").exists() else None


def _refusal(path: str, refused: Sequence[Difference], weights: Sequence[str]) -> str:
    lines = [f"the training of {path} had other settings, and going on with these would not be the same training:"]
    lines += [f"  {difference}" for difference in refused]
    lines += [f"  weights {problem}" for problem in weights]
    remedies = ["set them as they were"] if refused else []
    if not weights and all(difference.may_be_allowed for difference in refused):
        keys = dict.fromkeys(key for difference in refused for key in difference.keys[:1])
        remedies.append(f"let them differ with resume.allow=[{','.join(keys)}]")
    remedies.append("begin a new training from its weights with init_from= in place of ckpt_path=")
    return "\n".join([*lines, f"You can {', or '.join(remedies)}."])


def _other_order(moved: Sequence[Difference], state: Mapping[str, Any], data: ImageDataModule) -> str:
    """What gives the images of an epoch another order; empty if nothing does."""
    seed = ["another seed"] if state.get("seed", data.seed) != data.seed else []
    return " and ".join([*(f"other {difference.name}" for difference in moved), *seed])


def _unmovable(names: str, step: int, there: Batches, in_place: bool) -> str:
    if in_place:
        return (
            f"with {names} an epoch has other steps, so that metrics.csv would count two ways; "
            "go on in another folder: out=FOLDER"
        )
    return (
        f"with {names} a training can go on from the end of an epoch only, and this checkpoint is of step "
        f"{step}, in the middle of epoch {step // there.steps_per_epoch}; take one that was saved at an epoch's end"
    )


def _in_epochs(module: Pretrainer, *configs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Configs in which a duration that one of them leaves open, and not the other, is the number that it means."""
    found = [{**config} for config in configs]
    for setting, duration in module.durations.items():
        group, _, name = setting.partition(".")
        values = [(config.get(group) or {}).get(name) for config in configs]
        for config, value in zip(found, values, strict=True):
            epochs = (config.get("trainer") or {}).get("max_epochs")
            if values[0] != values[1] and value is None and epochs:
                config[group] = {**config[group], name: duration._replace(given=None).of(epochs)}
    return found


def _specs(module: Pretrainer) -> dict[str, Mapping[str, Any]]:
    return {"backbone": module.student.backbone.spec, "loss": module.objective.spec}


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the signatures of this config's parts, and of those that two parts hand their own on to."""
    from esvit_pl.datasets import Reading
    from esvit_pl.modules import Pretrainer
    from esvit_pl.pretraining import PretrainingStep

    handed_on = {
        f"{key}.{each.name}": each.default
        for key, part in (
            ("module", PretrainingStep),
            ("init", PretrainingStep),
            ("init", Pretrainer),
            ("dataset", Reading),
        )
        for each in inspect.signature(part).parameters.values()
        if each.default is not each.empty
    }
    return handed_on | defaults(config)


def _batches(cfg: DictConfig, data: ImageDataModule) -> Batches:
    from esvit_pl.checkpoints.resuming import Batches

    trainer = cfg.trainer
    return Batches(
        len(data.train_images),
        data.batch_size,
        processes(cfg),
        trainer.accumulate_grad_batches,
        trainer.limit_train_batches,
    )


def _saved_batches(state: Mapping[str, Any] | None, config: Mapping[str, Any]) -> Batches | None:
    """None where the training had a data module of somebody else."""
    from esvit_pl.checkpoints.resuming import Batches

    if state is None:
        return None
    limit = (config.get("trainer") or {}).get("limit_train_batches")
    return Batches(state["images"], state["batch_size"], state["ranks"], state["accumulate"], limit)


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
