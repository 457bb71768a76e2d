"""``esvit-pretrain``: pretrain a backbone without labels, then measure it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esvit_pl.configs.command_line import command, discard_run_folder
from esvit_pl.printing import say

if TYPE_CHECKING:
    from pathlib import Path

    from pytorch_lightning import Callback, Trainer

    from esvit_pl.datasets import Splits
    from esvit_pl.runs.result import Result

EXAMPLES = [
    "esvit-pretrain experiment=own_images dataset.root=photos/                 # settings that fit images and machine",
    "esvit-pretrain experiment=embedded                                        # minutes on two cores, no data needed",
    "esvit-pretrain dataset=folder dataset.root=photos/ trainer.max_epochs=100",
    "esvit-pretrain dataset=imagenet dataset.root=/data/imagenet trainer=ddp   # Swin-T, windows of 7, as published",
    "esvit-pretrain dataset=imagenet dataset.root=/data/imagenet loss=view backbone=swin_small_w14",
    "esvit-pretrain experiment=embedded ckpt_path=RUN/checkpoints/last.ckpt    # go on",
    "esvit-pretrain experiment=embedded out=logs/mine resume=auto              # begin there, or go on",
    "esvit-pretrain experiment=continued dataset.root=photos/                  # from pretrained weights of timm",
]


def needs(cfg: DictConfig) -> str | None:
    if cfg.get("dataset") is None:
        return "esvit-pretrain needs images: dataset=folder dataset.root=FOLDER, or an experiment"
    return None


@command("pretrain", summary="pretrain a backbone without labels, then measure it.", examples=EXAMPLES, needs=needs)
def main(cfg: DictConfig) -> float | None:
    from esvit_pl.commands import evaluation
    from esvit_pl.configs import assemble, own_images, plan, trainers

    cfg, images = own_images.of_job(cfg)
    if cfg.dry_run:
        made = plan.make(cfg, images, timed=plan.is_timed(cfg.dry_run))
        say(f"{made}\n\ndry_run={str(cfg.dry_run).lower()}: nothing was started")
        discard_run_folder()
        trainers.check_devices(cfg)  # the plan may be for another machine; what this one would refuse is said last
        return None
    default = assemble.choice("callbacks") == "default"
    return evaluation.optimized(cfg, pretrain(cfg, images, default_callbacks=default).metrics)


def pretrain(
    cfg: DictConfig,
    images: Splits | None = None,
    *,
    default_callbacks: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """The whole job: train, measure, draw, and say what came of it.

    Args:
        cfg: of ``esvit-pretrain``, with ``paths.output_dir`` set.
        images: in place of ``cfg.dataset``.
        default_callbacks: nobody asked for these callbacks by name, so those that need labels may be left out.
        callbacks: beside those of the config.
    """
    from esvit_pl.commands import results
    from esvit_pl.configs import assemble, resume, trainers, weights
    from esvit_pl.ema import make_teacher
    from esvit_pl.evaluation import NearestImages
    from esvit_pl.evaluation.names import PRETRAINED
    from esvit_pl.runs import bad_images, pictures, report
    from esvit_pl.runs.folder import RunFolder
    from esvit_pl.runs.kept_folder import KeptFolder
    from esvit_pl.runs.result import Result, newest_checkpoint

    trainers.check_devices(cfg)
    recipe = assemble.construct(cfg, "augment")
    module = assemble.pretrainer(cfg, recipe)  # before the images, which may take minutes to list
    splits = images or assemble.construct(cfg, "dataset")
    data = assemble.datamodule(cfg, splits, recipe)
    learnt = module.encoder
    parted = splits.val is not None or len(splits.train) > 1  # into a bank and a query
    probes = results.probes_of(cfg, labelled=data.has_labels) if parted else {}
    baselines = bool(probes and results.baselines_mode(cfg))
    beside = {"untrained": make_teacher(learnt)} if baselines else {}
    resumed, beginning = weights.start(cfg, module, data)
    if beginning:
        weights.say(beginning)
    if baselines and cfg.init_from is not None and cfg.ckpt_path is None:
        beside = {"initial": make_teacher(learnt)}
    if default_callbacks and not data.has_labels:
        cfg = trainers.without_labels(cfg)
    trainer = trainers.make(cfg, data, callbacks)
    results.check(probes, learnt, data.num_classes)
    run = RunFolder(cfg.paths.output_dir, writes=trainer.is_global_zero)
    run.describe(cfg, going_on_after=resume.steps_kept(cfg, run.path, resumed))
    trainer.callbacks.append(KeptFolder(run))  # type: ignore[attr-defined]

    with run.status(), trainers.watched(trainer, run), bad_images.kept(run, splits):
        if run.writes:
            pictures.draw_crops(run.path / "figures", splits.train, recipe, seed=cfg.seed)
        trainers.fit(trainer, module, data, resumed.path if resumed is not None else None)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        run.update(metrics=metrics)
        looks = {row: NearestImages(queries=6) for row in (PRETRAINED, *beside)}
        measured = results.measure(cfg, splits, recipe, learnt, probes, beside, looks=looks) if probes else None
        final = measured.final if measured else {}  # counts before what the last epoch logged
        table: dict[str, Any] = dict(measured.table) if measured else {}
        if measured:
            about = measured.about(cfg, {name: cfg.evaluation[name] for name in probes}, recipe)
            table["evaluation"] = about
            run.update(**table, metrics={**measured.metrics, **final, **metrics})
        if run.writes:
            pictures.draw_results(run.path / "figures", run.path / "metrics.csv", table)
            if measured:
                if near := {row: look.found for row, look in looks.items() if look.found}:
                    pictures.draw_neighbours(run.path / "figures", near, measured.few, recipe)
                pictures.draw_learned(run.path / "figures", learnt, splits.query, seed=cfg.seed)
    if run.writes:
        report.write_at_the_end(run.path)
        say(summary(trainer, metrics, measured.text() if measured else "", run.path))
    backbone = learnt.cpu().eval().requires_grad_(False)
    return Result(run.path, backbone, newest_checkpoint(run.path), metrics | final)


def summary(trainer: Trainer, metrics: dict[str, float], table: str, folder: Path) -> str:
    """What stands at the end: losses, the table of results, and where the files lie."""
    from esvit_pl.evaluation.names import is_training_loss, loss_title
    from esvit_pl.runs.claim import files_of_a_run

    losses = ", ".join(f"{loss_title(name)} {value:.3f}" for name, value in metrics.items() if is_training_loss(name))
    epochs, steps = trainer.current_epoch, trainer.global_step
    done = f"after {epochs} epoch{'s' * (epochs != 1)}, {steps} step{'s' * (steps != 1)}"
    lines = ["", f"{done}: {losses or 'there was nothing left to train'}"]
    if table:
        lines += ["", table]
    names = sorted(path.relative_to(folder).as_posix() for path in files_of_a_run(folder))
    shown = [name for name in names if not name.startswith(".hydra") and "/events.out." not in name]
    return "\n".join([*lines, "", f"{folder}/", *(f"  {name}" for name in shown)])


if __name__ == "__main__":
    main()
