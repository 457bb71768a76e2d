"""``esvit-linear``: train a linear probe on a checkpoint's frozen backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from esvit_pl.commands import evaluation

if TYPE_CHECKING:
    from esvit_pl.backbones import Backbone
    from esvit_pl.commands.evaluation import Subject
    from esvit_pl.commands.results import Measured
    from esvit_pl.data import ImageDataModule
    from esvit_pl.datasets import Splits
    from esvit_pl.modules import LinearProbe
    from esvit_pl.runs.result import Result

EXAMPLES = [
    "esvit-linear ckpt_path=RUN/checkpoints/last.ckpt dataset=imagenet dataset.root=/data/imagenet trainer=ddp",
    "esvit-linear ckpt_path=RUN/checkpoints/last.ckpt dataset=folder dataset.root=photos/ module.lr=[0.001,0.003,0.01]",
    "esvit-linear ckpt_path=RUN/checkpoints/last.ckpt trainer=cpu "
    "module.last_blocks=2 module.lr=[0.01,0.1,1.0] trainer.max_epochs=10   # on the images of its training",
]


@evaluation.command_on_checkpoint("linear", "train a linear probe on a checkpoint's frozen backbone.", EXAMPLES)
def main(cfg: DictConfig) -> float | None:
    return evaluation.optimized(cfg, evaluate(cfg).metrics)


def evaluate(cfg: DictConfig, images: Splits | None = None) -> Result:
    """The whole job; arguments as in `evaluation.evaluate`."""
    return evaluation.evaluate(evaluation.Job("linear", probe, measure, trains=True), cfg, images)


def probe(cfg: DictConfig, backbone: Backbone, data: ImageDataModule) -> LinearProbe:
    """The probe, with new heads."""
    from esvit_pl.checkpoints.locate import last_checkpoint
    from esvit_pl.configs import assemble, weights

    if cfg.resume_from is not None:
        with weights.naming("resume_from"):
            cfg.resume_from = str(last_checkpoint(cfg.resume_from))
    evaluation.refuse_unlabelled("esvit-linear", data)
    assemble.seed_weights(cfg)
    parts = {"backbone": backbone, "num_classes": data.num_classes, "seed": cfg.seed}
    made: LinearProbe = assemble.construct(cfg, "module", **parts)
    return made


def measure(cfg: DictConfig, probe: LinearProbe, subject: Subject) -> Measured:
    from esvit_pl.commands.results import Measured
    from esvit_pl.configs import trainers
    from esvit_pl.evaluation.names import CHANCE, LINEAR_TOP1, PRETRAINED

    trainers.fit(subject.trainer, probe, subject.data, cfg.resume_from)
    metrics = {name: float(value) for name, value in subject.trainer.callback_metrics.items()}
    column = {CHANCE: 1 / probe.num_classes, PRETRAINED: metrics[LINEAR_TOP1]}
    return Measured({"linear": column}, metrics, {"linear": LINEAR_TOP1}, subject.splits, subject.splits)


if __name__ == "__main__":
    main()
