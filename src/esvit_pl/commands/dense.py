"""``esvit-dense``: segmentation and keypoints on the frozen regions of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esvit_pl.commands import evaluation
from esvit_pl.configs import assemble, evaluated_images, trainers, weights
from esvit_pl.configs.command_line import command, requires
from esvit_pl.configs.kept_config import shown
from esvit_pl.printing import say

if TYPE_CHECKING:
    from esvit_pl.backbones import Backbone
    from esvit_pl.checkpoints import Checkpoint
    from esvit_pl.evaluation import Evaluator
    from esvit_pl.runs.result import Result

EXAMPLES = [
    "esvit-dense ckpt_path=RUN dataset=voc2012 dataset.root=/data/voc                 # mean IoU",
    "esvit-dense ckpt_path=RUN dataset=ade20k dataset.root=/data/ade evaluation.probes=[segmentation_knn] stage=2",
    "esvit-dense ckpt_path=RUN dataset=spair71k dataset.root=/data/SPair-71k          # PCK at 0.1",
]
SEGMENTATIONS = ("segmentation_knn", "segmentation_in_context", "segmentation_linear")
KEYPOINTS = ("keypoints",)


@command(
    "dense",
    summary="segmentation and keypoints on the frozen regions of a checkpoint.",
    examples=EXAMPLES,
    needs=requires("esvit-dense", "ckpt_path", "dataset"),
    refuses=partial(evaluated_images.refuse_experiment, "esvit-dense"),
)
def main(cfg: DictConfig) -> float | None:
    metrics = evaluate(cfg).metrics
    return evaluation.optimized(cfg, metrics) if cfg.optimized_metric else next(iter(metrics.values()))


def evaluate(cfg: DictConfig, built: Mapping[str, Evaluator] | None = None) -> Result:
    """The whole job.

    Args:
        cfg: of the command, with ``paths.output_dir`` set.
        built: {probe: evaluator}, in place of those of the config.
    """
    from esvit_pl.commands import results
    from esvit_pl.configs.processes import processes
    from esvit_pl.datasets import KeypointSplits
    from esvit_pl.evaluation import Baselines, place_of
    from esvit_pl.evaluation.names import PRETRAINED
    from esvit_pl.runs import bad_images
    from esvit_pl.runs.folder import RunFolder
    from esvit_pl.runs.result import Result

    trainers.check_devices(cfg)
    if processes(cfg) > 1:
        raise ValueError(f"esvit-dense runs in one process, got {processes(cfg)}; set trainer.devices=1")
    source = weights.evaluated(cfg)
    backbone = weights.frozen_backbone(cfg, source)
    recipe, line = evaluated_images.preparation(cfg, source)
    assemble.check_channels(recipe, backbone)
    evaluated_images.keep(cfg, recipe)
    splits, _ = assemble.images(cfg)
    loaders = assemble.construct(cfg, "datamodule", splits=splits, recipe=recipe, seed=cfg.seed)
    possible = KEYPOINTS if isinstance(splits, KeypointSplits) else SEGMENTATIONS
    probes = built or probes_of(cfg, possible)
    results.check(probes, backbone, None)
    trainer = trainers.quiet(cfg)
    place = place_of(trainer)
    beside = others(cfg, source, backbone, loaders.size) if results.baselines_mode(cfg) else {}
    run = RunFolder(cfg.paths.output_dir)
    run.describe(cfg)
    weights.say("\n".join([splits.describe(), line, f"whole images, resized to {loaders.size} x {loaders.size} px"]))
    asked = Baselines(probes, beside)
    with run.status(), bad_images.kept(run, splits):
        found = asked.run(place.module(backbone).eval(), loaders.data(place))
        rows = (*beside, PRETRAINED)
        table = {name: {row: found[f"{name}/{row}"] for row in rows} for name in probes}
        cells = {f"{name}/{row}" for name in probes for row in rows}
        metrics = {name: value for name, value in found.items() if name not in cells}
        about = {
            "dataset": {"name": evaluated_images.name(cfg.dataset), **_settings(cfg.dataset)},
            "size": loaders.size,
            "probes": {name: _settings(cfg.evaluation[name]) for name in probes},
        }
        run.update(**table, metrics=metrics, evaluation=about)
    say(f"\n{results.as_text(table, asked.metrics)}\n\n{run.path}/")
    return Result(run.path, backbone.cpu(), Path(cfg.ckpt_path), metrics)


def others(cfg: DictConfig, source: Checkpoint, backbone: Backbone, size: int) -> dict[str, Backbone]:
    """What the backbone is compared with, by row: raw pixels in as many regions, and itself untrained."""
    import torch

    from esvit_pl.evaluation import RawRegions

    untrained = evaluation.untrained(cfg, source, backbone)
    channels = backbone.spec.get("in_chans", 3)
    with torch.no_grad():
        grid = untrained.stage_regions(torch.zeros(1, channels, size, size), cfg.stage).grid
    return {"raw_pixels": RawRegions(grid[0], channels=channels), "untrained": untrained}


def probes_of(cfg: DictConfig, possible: Sequence[str]) -> dict[str, Evaluator]:
    """The evaluators of ``evaluation.probes``; all that are possible where it is null."""
    from esvit_pl.commands import results

    if cfg.evaluation.probes is None:
        cfg.evaluation.probes = list(possible)
    probes = results.probes_of(cfg, labelled=True)
    others = [name for name in probes if name not in possible]
    if others or not probes:
        raise ValueError(
            f"evaluation.probes=[{','.join(probes)}]: these images can be asked for {', '.join(possible)}; "
            "segmentations need masks (dataset=voc2012, ade20k), keypoints need pairs (dataset=spair71k)"
        )
    return probes


def _settings(node: DictConfig) -> dict[str, Any]:
    return {name: value for name, value in shown(node).items() if name != "_target_"}


if __name__ == "__main__":
    main()
