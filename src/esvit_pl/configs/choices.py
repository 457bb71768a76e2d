"""Settings that fit the images and the machine: the rules of docs/experiments.md as a pure function, `choose`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

PUBLISHED_IMAGES, PUBLISHED_BATCH, PUBLISHED_PROTOTYPES = 1_281_167, 512, 65536
GIB = 2**30
SIDES = (224, 112, 64, 32)
"""Global crops, largest first; a CPU begins with the second."""
CPU_IMAGES = 250_000
"""Images that a CPU sees in the whole training: about an hour of two cores."""
MIB_AN_IMAGE = {"swin_tiny_w7": 400, "swin_micro_w7": 40, "swin_micro_32px": 15}
"""Memory of a step for an image with global crops of 224 px (`swin_micro_32px`: 64 px), and some to spare."""


class Machine(NamedTuple):
    """What trains."""

    device: str
    """"cuda" or "cpu"."""
    memory: int
    """Bytes that the device has, used or not: all processes of a training see the same number."""
    processes: int = 1
    bfloat16: bool = True
    """Whether a GPU computes in bfloat16."""


class Choice(NamedTuple):
    """Settings that go together, and why they are as they are."""

    topic: str
    settings: dict[str, Any]
    """Name as on the command line -> value."""
    reason: str


def choose(images: int, side: float, machine: Machine, given: Mapping[str, Any] | None = None) -> list[Choice]:
    """Backbone, crops, batch, epochs and what follows from them, for a training on images of one's own.

    >>> micro = choose(5_000, side=375, machine=Machine("cpu", 16 * GIB))
    >>> {key: value for choice in micro for key, value in choice.settings.items()}["backbone"]
    'swin_micro_w7'

    Args:
        images: how many there are to train on.
        side: median of their shorter sides in pixels.
        machine: what trains.
        given: settings of the user. Choices that depend on them follow: backbone, augment.global_size,
            datamodule.batch_size, trainer.accumulate_grad_batches, trainer.max_epochs.

    Returns:
        All choices, those that `given` replaces included.

    Raises:
        ValueError: there are no images.
    """
    if images < 1:
        raise ValueError(f"settings are chosen for 1 image or more, got {images}")
    given = dict(given or {})
    on_gpu = machine.device == "cuda"

    crop = int(given.get("augment.global_size", crop_for(side, on_gpu)))
    backbone = str(given.get("backbone", backbone_for(images, crop, on_gpu)))
    micro_swin = backbone.startswith("swin_micro")
    local = round(crop * 3 / 7) if crop > 64 else crop // 2
    batch = batch_for(images, on_gpu)
    micro, accumulate = split(batch, backbone, crop, machine)
    micro = int(given.get("datamodule.batch_size", micro))
    accumulate = int(given.get("trainer.accumulate_grad_batches", accumulate))
    batch = max(micro * accumulate * machine.processes, 1)
    per_epoch = max(images // batch, 1)
    epochs = int(given.get("trainer.max_epochs") or 0)
    epochs = epochs if epochs > 0 else epochs_for(images, on_gpu)  # a training may have no end but trainer.max_steps
    steps = per_epoch * epochs
    warmup = max(steps / 30, min(1000, steps / 10))
    start, end = momentum_for(batch, steps)
    prototypes = min(prototypes_for(images), 4096 if micro_swin else PUBLISHED_PROTOTYPES)
    on = "a GPU" if on_gpu else "a CPU"
    precision = {} if machine.bfloat16 or not on_gpu else {"trainer.precision": "16-mixed"}
    heads: dict[str, Any] = {"loss.num_prototypes": prototypes}
    learning: dict[str, Any] = {"loss.teacher_temp_warmup_epochs": max(round(epochs / 10), 1)}
    source = "as published; the teacher's temperature warms up for a tenth of training"
    if micro_swin:
        heads |= {"loss.hidden_dim": 256, "loss.out_dim": 64}
        learning = {"loss.teacher_temp_warmup_epochs": 0, "loss.teacher_temp": 0.04}
        learning |= {"loss.batch_norm": True, "optimizer.lr": 0.012}
        source = "those of experiment=embedded, whose accuracy is measured"
    return [
        Choice("trainer", {"trainer": "gpu" if on_gpu else "cpu", **precision}, f"one process on {on}"),
        Choice("backbone", {"backbone": backbone}, REASONS.get(backbone, "given")),
        Choice(
            "crops",
            crop_settings(crop, local, side, 4 if micro_swin else 8),
            f"the largest of {', '.join(map(str, SIDES if on_gpu else SIDES[1:]))} px that the images fill; on {on}",
        ),
        Choice(
            "batch",
            {"datamodule.batch_size": micro, "trainer.accumulate_grad_batches": accumulate},
            f"{batch} images a step, {per_epoch:,} steps an epoch"
            + (f"; in parts that {machine.memory / GIB:.0f} GiB hold" if accumulate > 1 else ""),
        ),
        Choice(
            "epochs",
            {"trainer.max_epochs": epochs},
            f"{steps:,} steps in all; "
            + (
                "as the presets one_gpu_*" if on_gpu else f"at most {CPU_IMAGES:,} images and 200 epochs, an hour or so"
            ),
        ),
        Choice("prototypes", heads, "one for 20 images, 64 at least; and hidden layers in proportion to the backbone"),
        Choice("learning", learning, source),
        Choice(
            "warm-up",
            {
                "optimizer.warmup_epochs": short(warmup / per_epoch),
                "module.freeze_prototypes_epochs": short(warmup / per_epoch / 10),
            },
            f"{warmup:,.0f} steps: 1/30 of training, at least 1,000 steps, at most 1/10; prototypes a tenth of it",
        ),
        Choice(
            "teacher",
            {"module.momentum": start, "module.momentum_end": end},
            "remembers 128,000 images, 3 % of training at most",
        ),
        Choice(
            "reading",
            {"datamodule.reduced_decoding": side >= 4 * crop},
            "large JPEGs are decoded at a part of their size, faster"
            if side >= 4 * crop
            else "whole images: they are not much larger than the crops",
        ),
    ]


REASONS = {
    "swin_tiny_w7": "28 M parameters, the published one; for a GPU and 5,000 images or more",
    "swin_micro_w7": "0.8 M parameters, with the shapes of the large ones; for a CPU or few images",
    "swin_micro_32px": "0.2 M parameters, two stages; for images below 112 px",
}


def crop_for(side: float, on_gpu: bool) -> int:
    """Side of the global crops: the largest that images of this shorter side fill, or nearly."""
    return next((crop for crop in SIDES[not on_gpu :] if crop <= 1.1 * side), SIDES[-1])


def backbone_for(images: int, crop: int, on_gpu: bool) -> str:
    if crop < 112:
        return "swin_micro_32px"
    return "swin_tiny_w7" if on_gpu and images >= 5_000 else "swin_micro_w7"


def crop_settings(crop: int, local: int, side: float, num_local: int) -> dict[str, Any]:
    blur = round(2 * crop / SIDES[0], 2)
    resize = round(crop * 8 / 7) if side >= crop * 8 / 7 else crop
    return {
        "augment.global_size": crop,
        "augment.local_size": local,
        "augment.num_local": num_local,
        "augment.blur_radius": [0.1, max(blur, 0.2)],
        "augment.eval_resize": resize,
        "augment.eval_crop": crop,
        "augment.supervised_size": crop,
    }


def batch_for(images: int, on_gpu: bool) -> int:
    """Images of a step: a power of two, so that an epoch has four steps where images are few."""
    most = 64 if not on_gpu or images < 30_000 else 128 if images < 300_000 else 256
    wanted = min(max(images // 4, min(images, 4)), most)
    return int(2 ** int(math.log2(wanted)))


def split(batch: int, backbone: str, crop: int, machine: Machine) -> tuple[int, int]:
    """(images of a micro-batch, accumulated batches) of a global batch: as many as the memory holds, 64 at most."""
    nominal = 64 if backbone == "swin_micro_32px" else SIDES[0]
    one = MIB_AN_IMAGE.get(backbone, MIB_AN_IMAGE["swin_tiny_w7"]) * 2**20 * (crop / nominal) ** 2
    share = batch // math.gcd(batch, machine.processes)
    fitting = max(min(int(0.6 * machine.memory / one), 64, share), 1)
    micro = 2 ** int(math.log2(fitting))
    return micro, max(share // micro, 1)


def epochs_for(images: int, on_gpu: bool) -> int:
    """100 for a million images, 300 for 100,000, 800 for 10,000 and fewer on a GPU; on a CPU what an hour allows."""
    if not on_gpu:
        return min(max(round(CPU_IMAGES / images), 1), 200)
    return int(round(min(max(800 * (10_000 / images) ** 0.45, 100), 800), -1))


def momentum_for(batch: int, steps: int) -> tuple[float, float]:
    """The teacher's momentum at the start and at the end."""
    horizon = max(min(1 / (1 - 0.996 ** (batch / PUBLISHED_BATCH)), 0.03 * steps), 2.0)
    start = short(1 - 1 / horizon)
    return start, 1.0 if horizon < 0.01 * steps else max(short(1 - 10 / steps), start)


def prototypes_for(images: int) -> int:
    """In proportion to the images, as a power of two."""
    wanted = images * PUBLISHED_PROTOTYPES / PUBLISHED_IMAGES
    return int(min(max(2 ** round(math.log2(wanted)), 64), PUBLISHED_PROTOTYPES))


def short(number: float) -> float:
    """Rounded to as many digits as a config shows: five, counted from the first that is no 9 where it is near 1."""
    digits = 3 - math.floor(math.log10(min(abs(number), abs(1 - number)) or 1))
    return round(number, max(digits, 0))
