"""``esvit-knn``: weighted k-NN accuracy of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esvit_pl.configs.command_line import command, requires
from esvit_pl.configs.evaluated_images import refuse_experiment

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from esvit_pl.backbones import Backbone
    from esvit_pl.data import ImageDataModule
    from esvit_pl.datasets import Splits
    from esvit_pl.modules import Evaluation
    from esvit_pl.runs.result import Result

EXAMPLES = [
    "esvit-knn ckpt_path=RUN/checkpoints/last.ckpt                            # on the images of its training",
    "esvit-knn ckpt_path=RUN/checkpoints/last.ckpt dataset=imagenet dataset.root=/data/imagenet",
    "esvit-knn ckpt_path=RUN/checkpoints/last.ckpt dataset=folder dataset.root=photos/ module.k=[20,10,100,200]",
]


@command(
    "knn",
    summary="weighted k-NN accuracy of a checkpoint's backbone.",
    examples=EXAMPLES,
    needs=requires("esvit-knn", "ckpt_path"),
    refuses=partial(refuse_experiment, "esvit-knn"),
)
def main(cfg: DictConfig) -> float | None:
    from esvit_pl.commands import evaluation

    return evaluation.optimized(cfg, evaluate(cfg).metrics)


def evaluate(cfg: DictConfig, images: Splits | None = None) -> Result:
    """The whole job; arguments as in `evaluation.evaluate`."""
    from esvit_pl.commands import evaluation

    return evaluation.evaluate(evaluation.Job("knn", evaluator, measure), cfg, images)


def evaluator(cfg: DictConfig, backbone: Backbone, data: ImageDataModule) -> Evaluation:
    from esvit_pl.configs import assemble
    from esvit_pl.modules import Evaluation

    return Evaluation(backbone, assemble.construct(cfg, "module"))


def measure(cfg: DictConfig, trainer: Trainer, module: Evaluation, data: ImageDataModule) -> Mapping[str, Any]:
    return trainer.validate(module, data, verbose=False)[0]


if __name__ == "__main__":
    main()
