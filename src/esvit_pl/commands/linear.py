"""``esvit-linear``: train a linear probe on a checkpoint's frozen backbone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from esvit_pl.configs.command_line import command, requires

if TYPE_CHECKING:
    from esvit_pl.datasets import Splits
    from esvit_pl.runs.result import Result

EXAMPLES = [
    "esvit-linear ckpt_path=RUN/checkpoints/last.ckpt dataset=imagenet dataset.root=/data/imagenet trainer=ddp",
    "esvit-linear ckpt_path=RUN/checkpoints/last.ckpt dataset=folder dataset.root=photos/ module.lr=[0.001,0.003,0.01]",
    "esvit-linear ckpt_path=RUN/checkpoints/last.ckpt dataset=photographs augment=embedded trainer=cpu "
    "module.last_blocks=2 module.lr=[0.01,0.1,1.0] trainer.max_epochs=10",
]


needs = requires("esvit-linear", "ckpt_path", "dataset")


@command("linear", summary="train a linear probe on a checkpoint's frozen backbone.", examples=EXAMPLES, needs=needs)
def main(cfg: DictConfig) -> float | None:
    from esvit_pl.commands import evaluation

    return evaluation.optimized(cfg, evaluate(cfg).metrics)


def evaluate(cfg: DictConfig, images: Splits | None = None) -> Result:
    """The whole job.

    Args:
        cfg: of ``esvit-linear``, with ``paths.output_dir`` set.
        images: in place of ``cfg.dataset``.
    """
    from esvit_pl.commands.knn import report
    from esvit_pl.configs import assemble, trainers, weights
    from esvit_pl.evaluation.names import LINEAR_TOP1, PRETRAINED
    from esvit_pl.runs.folder import RunFolder
    from esvit_pl.runs.result import Result

    backbone = weights.frozen_backbone(cfg)
    data = assemble.datamodule(cfg, *assemble.images(cfg, images))
    assemble.seed_weights(cfg)
    module = assemble.construct(cfg, "module", backbone=backbone, num_classes=data.num_classes)
    trainer = trainers.make(cfg, data)
    run = RunFolder(cfg.paths.output_dir, writes=trainer.is_global_zero)
    run.describe(cfg)
    with run.status():
        trainers.fit(trainer, module, data, cfg.resume_from)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        run.update(linear={PRETRAINED: metrics[LINEAR_TOP1]}, metrics=metrics)
    if run.writes:
        print(report({name: value for name, value in metrics.items() if "top" in name}, run.path), flush=True)
    return Result(run.path, backbone.cpu(), Path(cfg.ckpt_path), metrics)


if __name__ == "__main__":
    main()
