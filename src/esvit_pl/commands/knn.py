"""``esvit-knn``: weighted k-NN accuracy of a checkpoint."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from esvit_pl.commands import evaluation

if TYPE_CHECKING:
    from esvit_pl.backbones import Backbone
    from esvit_pl.commands.evaluation import Subject
    from esvit_pl.commands.results import Measured
    from esvit_pl.data import ImageDataModule
    from esvit_pl.datasets import Splits
    from esvit_pl.evaluation import Evaluator
    from esvit_pl.runs.result import Result

EXAMPLES = [
    "esvit-knn ckpt_path=RUN/checkpoints/last.ckpt                            # on the images of its training",
    "esvit-knn ckpt_path=RUN/checkpoints/last.ckpt dataset=imagenet dataset.root=/data/imagenet",
    "esvit-knn ckpt_path=RUN/checkpoints/last.ckpt dataset=folder dataset.root=photos/ module.k=[20,10,100,200]",
]


@evaluation.command_on_checkpoint("knn", "weighted k-NN accuracy of a checkpoint's backbone.", EXAMPLES)
def main(cfg: DictConfig) -> float | None:
    metrics = evaluate(cfg).metrics
    return evaluation.optimized(cfg, metrics) if cfg.optimized_metric else next(iter(metrics.values()))


def evaluate(
    cfg: DictConfig, images: Splits | None = None, probe: str | None = None, built: Evaluator | None = None
) -> Result:
    """The whole job; arguments as in `evaluation.evaluate`.

    Args:
        probe: what results call the evaluator; by default the option that the command line has chosen.
        built: the evaluator itself, in place of ``module``.
    """
    from esvit_pl.configs import assemble

    name = probe or assemble.choice("evaluator@module") or "knn"
    job = evaluation.Job("knn", partial(evaluator, built=built), partial(measure, name))
    return evaluation.evaluate(job, cfg, images)


def evaluator(
    cfg: DictConfig, backbone: Backbone, data: ImageDataModule, *, built: Evaluator | None = None
) -> Evaluator:
    """The evaluator of ``module``, or the one that is `built`, fit for the images."""
    from esvit_pl.configs import assemble

    made: Evaluator = built or assemble.construct(cfg, "module")
    if getattr(made, "needs_labels", True):
        evaluation.refuse_unlabelled("esvit-knn", data)
    return made


def measure(probe: str, cfg: DictConfig, evaluator: Evaluator, subject: Subject) -> Measured:
    from esvit_pl.commands import results

    probes = {probe: evaluator}
    beside = {}
    if results.baselines_mode(cfg):
        beside = {"untrained": evaluation.untrained(cfg, subject.source, subject.backbone)}
    return results.measure(
        cfg, subject.splits, subject.recipe, subject.backbone, probes, beside, trainer=subject.trainer
    )


if __name__ == "__main__":
    main()
