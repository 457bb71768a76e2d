"""What a sweep of learning rates costs: ``python -m benchmarks.linear_sweep``.

An epoch of the linear probe on the embedded photographs, with augmentation, with one learning rate and with thirteen,
three times in turn, on a Swin of random weights. Half of a sweep's classifiers rehearse without the held-out images.
"""

from __future__ import annotations

from functools import partial
from statistics import median

import torch

from esvit_pl.augment import Recipe
from esvit_pl.backbones import build
from esvit_pl.configs.compose import compose
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import photographs
from esvit_pl.evaluation import EvaluationData, Linear, Training
from esvit_pl.profiling.measure import machine, seconds
from esvit_pl.profiling.report import as_words

RATES = [round(10 ** (power / 4 - 3), 5) for power in range(13)]


def main() -> None:
    cfg = compose("pretrain", "experiment=embedded")
    spec = {name: value for name, value in cfg.backbone.items() if name != "_target_"}
    backbone = build(**(spec if "name" in spec else {"name": "swin", **spec})).eval().requires_grad_(False)
    recipe = Recipe(**{name: value for name, value in cfg.augment.items() if name != "_target_" and value is not None})
    images = photographs()
    module = ImageDataModule(images, recipe, num_workers=0, train="supervised")

    def train(lr: float | list[float]) -> None:
        data = EvaluationData(
            train=lambda: Training(module.train_dataloader(), 64, 1, module.set_epoch, module.hold_out),
            num_classes=module.num_classes,
        )
        Linear(last_blocks=2, lr=lr, epochs=1).train(backbone, data)

    torch.set_num_threads(1)
    times: dict[int, list[float]] = {1: [], 13: []}
    for _ in range(3):
        times[1].append(seconds(partial(train, 0.001)))
        times[13].append(seconds(partial(train, RATES)))
    one, many = (median(each) for each in times.values())
    print(f"{as_words(machine())}, {len(images.bank):,} images of 32 px")
    print(f"one rate {one:.1f} s an epoch, thirteen rates {many:.1f} s: {many / one:.2f} times as long")


if __name__ == "__main__":
    main()
