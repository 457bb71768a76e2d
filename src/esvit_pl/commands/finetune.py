"""``esvit-finetune``: train a checkpoint's whole backbone to classify, or the same backbone from scratch."""

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
    from esvit_pl.modules import FineTuning
    from esvit_pl.runs.result import Result

EXAMPLES = [
    "esvit-finetune ckpt_path=RUN dataset=imagenet dataset.root=/data/imagenet trainer=ddp trainer.devices=8",
    "esvit-finetune ckpt_path=RUN dataset=folder dataset.root=photos/ trainer.max_epochs=30 module.ema_decay=0.9999",
    "esvit-finetune ckpt_path=RUN from_scratch=true   # the same without the checkpoint's weights, to compare with",
]


@evaluation.command_on_checkpoint("finetune", "train a checkpoint's whole backbone to classify.", EXAMPLES)
def main(cfg: DictConfig) -> float | None:
    return evaluation.optimized(cfg, evaluate(cfg).metrics)


def evaluate(cfg: DictConfig, images: Splits | None = None) -> Result:
    """The whole job; arguments as in `evaluation.evaluate`. The result holds the backbone that was fine-tuned."""
    from dataclasses import replace

    from esvit_pl.checkpoints import load_backbone
    from esvit_pl.runs.result import newest_checkpoint

    result = evaluation.evaluate(evaluation.Job("finetune", prepare, measure, trains=True), cfg, images)
    kept = newest_checkpoint(result.folder)
    return result if kept is None else replace(result, backbone=load_backbone(kept), checkpoint=kept)


def prepare(cfg: DictConfig, backbone: Backbone, data: ImageDataModule) -> FineTuning:
    """The module, with a new classifier."""
    from esvit_pl.augment import EvaluationTransform
    from esvit_pl.backbones import build
    from esvit_pl.checkpoints.locate import last_checkpoint
    from esvit_pl.configs import assemble, weights
    from esvit_pl.configs.kept_config import kept
    from esvit_pl.datasets import PixelRules

    if cfg.resume_from is not None:
        with weights.naming("resume_from"):
            cfg.resume_from = str(last_checkpoint(cfg.resume_from))
    evaluation.refuse_unlabelled("esvit-finetune", data)
    assemble.seed_weights(cfg)
    if cfg.from_scratch:
        backbone = build(**backbone.spec)
    parts = {"num_classes": data.num_classes, "seed": cfg.seed, "config": kept(cfg)}
    made: FineTuning = assemble.construct(cfg, "module", backbone=backbone, **parts)
    made.encoder.transform = EvaluationTransform(data.recipe, PixelRules.among(assemble.plain(cfg).get("dataset")))
    return made


def measure(cfg: DictConfig, module: FineTuning, subject: Subject) -> Measured:
    from esvit_pl.commands.results import Measured
    from esvit_pl.configs import trainers
    from esvit_pl.evaluation.names import CHANCE, FINETUNE_EMA_TOP1, FINETUNE_TOP1, FROM_SCRATCH, PRETRAINED

    trainers.fit(subject.trainer, module, subject.data, cfg.resume_from)
    metrics = {name: float(value) for name, value in subject.trainer.callback_metrics.items()}
    row = FROM_SCRATCH if cfg.from_scratch else PRETRAINED
    top1 = metrics.get(FINETUNE_EMA_TOP1, metrics[FINETUNE_TOP1])  # of the encoder, which other commands read
    column = {CHANCE: 1 / module.num_classes, row: top1}
    return Measured({"finetune": column}, metrics, {"finetune": FINETUNE_TOP1}, subject.splits, subject.splits)


if __name__ == "__main__":
    main()
