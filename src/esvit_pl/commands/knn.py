"""``esvit-knn``: weighted k-NN accuracy of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from esvit_pl.configs.command_line import command, requires

if TYPE_CHECKING:
    from esvit_pl.datasets import Splits
    from esvit_pl.runs.result import Result

EXAMPLES = [
    "esvit-knn ckpt_path=RUN/checkpoints/last.ckpt dataset=imagenet dataset.root=/data/imagenet",
    "esvit-knn ckpt_path=RUN/checkpoints/last.ckpt dataset=photographs augment=embedded trainer=cpu",
    "esvit-knn ckpt_path=RUN/checkpoints/last.ckpt dataset=folder dataset.root=photos/ module.k=[20,10,100,200]",
]


needs = requires("esvit-knn", "ckpt_path", "dataset")


@command("knn", summary="weighted k-NN accuracy of a checkpoint's backbone.", examples=EXAMPLES, needs=needs)
def main(cfg: DictConfig) -> float | None:
    from esvit_pl.commands import evaluation

    return evaluation.optimized(cfg, evaluate(cfg).metrics)


def evaluate(cfg: DictConfig, images: Splits | None = None) -> Result:
    """The whole job.

    Args:
        cfg: of ``esvit-knn``, with ``paths.output_dir`` set.
        images: in place of ``cfg.dataset``.
    """
    from esvit_pl.configs import assemble, trainers, weights
    from esvit_pl.evaluation.names import KNN_TOP1, PRETRAINED
    from esvit_pl.modules import Evaluation
    from esvit_pl.runs.folder import RunFolder
    from esvit_pl.runs.result import Result

    backbone = weights.frozen_backbone(cfg)
    data = assemble.datamodule(cfg, *assemble.images(cfg, images))
    module = Evaluation(backbone, assemble.construct(cfg, "module"))
    trainer = trainers.make(cfg, data)
    run = RunFolder(cfg.paths.output_dir, writes=trainer.is_global_zero)
    run.describe(cfg)
    with run.status():
        metrics = {name: float(value) for name, value in trainer.validate(module, data, verbose=False)[0].items()}
        run.update(knn={PRETRAINED: metrics[KNN_TOP1]}, metrics=metrics)
    if run.writes:
        print(report(metrics, run.path), flush=True)
    return Result(run.path, backbone.cpu(), Path(cfg.ckpt_path), metrics)


def report(metrics: dict[str, float], folder: object) -> str:
    """The metrics in %, one a line, and where they are kept."""
    width = max(map(len, metrics))
    return "\n".join(
        ["", *(f"{name:<{width}}  {100 * value:5.1f}%" for name, value in metrics.items()), "", f"{folder}/"]
    )


if __name__ == "__main__":
    main()
