"""What backbones cost at inference, beside the paper's numbers; and the paper's first figure of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from statistics import median
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from esvit_pl.backbones import Backbone
from esvit_pl.printing import say
from esvit_pl.profiling.available_memory import available_bytes
from esvit_pl.profiling.batch_size import as_size
from esvit_pl.profiling.measure import seconds
from esvit_pl.profiling.memory import predict_pass
from esvit_pl.profiling.published import (
    COSTS,
    ESVIT,
    FINE_TUNED,
    RIVALS,
    Rival,
    accuracy,
    rival,
    v100_images_per_second,
)
from esvit_pl.profiling.training import channels_of
from esvit_pl.visualize import Model, accuracy_against_throughput

Precision = Literal["float32", "bf16"]

CONVNETS = ("SwAV", "BYOL", "SimCLR-v2")
"""Methods of the paper's Table 1 that have one large convolutional network each, and share a colour."""


class Throughput(NamedTuple):
    """A backbone without heads, in eval mode."""

    backbone: str
    parameters: int
    flops: int
    """Multiply-adds of one image, which is what papers call FLOPs (`multiply_adds`)."""
    batch_size: int | None
    """Images of one pass here."""
    images_per_second: float | None
    """Here: images of a batch / median seconds of a pass."""
    v100_images_per_second: float | None
    """In the paper's tables."""
    view: str | None
    """Published linear / k-NN accuracy on ImageNet-1k in %, with L_V."""
    view_region: str | None
    """The same with L_V + L_R."""
    rival: str | None = None
    """Method of the paper's Table 1, where that is neither EsViT nor DINO, and its linear / k-NN accuracy in %."""


def throughput(
    backbones: Mapping[str, Callable[[], Backbone]],
    *,
    batch_size: int = 1,
    precision: Precision = "float32",
    device: str = "cpu",
) -> Iterator[Throughput]:
    """What each backbone costs and how many images of 224 px it embeds a second, one after the other.

    One that does not fit into the device's memory is left out, and a line says so.

    Args:
        backbones: {name of its file in conf/backbone: what builds it}; one is built at a time.
        batch_size: images.
        precision: "float32", or "bf16": under autocast.
        device: where.

    Raises:
        ValueError: no image, or an unknown precision.
    """
    if batch_size < 1:
        raise ValueError(f"throughput needs batch_size from 1 on, got {batch_size}")
    if precision not in ("float32", "bf16"):
        raise ValueError(f"throughput needs precision 'float32' or 'bf16', got {precision!r}")
    for name, build in backbones.items():
        with torch.device("meta"):
            shapes = build().eval()
        torch.cuda.empty_cache()  # of the backbone before; nothing where there is no GPU
        there = available_bytes(device)
        autocast = torch.bfloat16 if precision == "bf16" else None
        needed = predict_pass(shapes, batch_size=batch_size, autocast=autocast, device=device)
        if needed > there:
            say(f"{name} is left out: batch {batch_size} needs {as_size(needed)}; {as_size(there)} are available")
            continue
        row = counted(name, shapes)
        rate = images_per_second(build().eval().to(device), batch_size=batch_size, precision=precision)
        yield row._replace(batch_size=batch_size, images_per_second=rate)


def counted(name: str, backbone: Backbone) -> Throughput:
    """What needs no measurement; nothing is computed."""
    view, both = (accuracy(name, loss) for loss in ("view", "view_region"))
    return Throughput(
        name,
        sum(parameter.numel() for parameter in backbone.parameters()),
        multiply_adds(deepcopy(backbone).to("meta")),
        None,
        None,
        v100_images_per_second(name),
        str(view) if view else None,
        str(both) if both else None,
        str(rival(name)) if name in COSTS else None,
    )


def multiply_adds(backbone: Backbone, side: int = 224) -> int:
    """Operations for one image: convolutions, linear layers and both products of every attention.

    As in the literature, norms, softmax, activations and sums are not counted. torch counts two operations for each.
    """
    image = torch.empty(1, channels_of(backbone), side, side, device=_device(backbone))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(image)
    return int(counter.get_total_flops()) // 2


def images_per_second(
    backbone: Backbone,
    *,
    side: int = 224,
    batch_size: int,
    precision: Precision,
    repeats: int = 10,
    budget_seconds: float = 3.0,
) -> float:
    """Images of a batch / median seconds of a pass in inference mode, where the backbone lies.

    Args:
        side: of the images in pixels.
        batch_size, precision: as in `throughput`.
        repeats: passes measured at most, after one to warm up.
        budget_seconds: no pass begins later than this after the first measured one; one is always made.
    """
    device = _device(backbone)
    images = torch.randn(batch_size, channels_of(backbone), side, side, device=device)

    def run() -> None:
        # Inside, so that every pass casts its weights, as a first one does.
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            backbone(images)

    seconds(run, device)
    start = perf_counter()
    passes = [seconds(run, device)]
    while len(passes) < repeats and perf_counter() - start < budget_seconds:
        passes.append(seconds(run, device))
    return batch_size / median(passes)


def picture(rows: Sequence[Throughput] = (), *, where: str = "this machine") -> Any:
    """A matplotlib Figure of accuracy against throughput: published ones; below, if `rows` are given, measured ones.

    Args:
        rows: of `throughput`; configs without a published accuracy are left out.
        where: the machine, in words.
    """
    return accuracy_against_throughput(published_models(), measured_models(rows), where=where)


def published_models() -> list[Model]:
    """What the paper's tables give a throughput and a linear accuracy for."""
    ours = [
        _esvit(name, own.v100_images_per_second, own.parameters)
        for name, own in ESVIT.items()
        if own.v100_images_per_second is not None
    ]
    rivals = [
        _rival(line, line.v100_images_per_second, line.parameters)
        for line in RIVALS
        if line.v100_images_per_second is not None and line.remark != FINE_TUNED
    ]
    return ours + rivals


def measured_models(rows: Sequence[Throughput]) -> list[Model]:
    """Rows that were measured and whose accuracy is published, EsViT's first."""
    measured = [(row, row.images_per_second) for row in rows if row.images_per_second is not None]
    ours = [_esvit(row.backbone, rate, row.parameters) for row, rate in measured if row.backbone in ESVIT]
    lines = [(rival(row.backbone), rate, row.parameters) for row, rate in measured]
    return ours + [_rival(line, rate, parameters) for line, rate, parameters in lines if line is not None]


def _esvit(name: str, rate: float, parameters: int) -> Model:
    view, both = accuracy(name, "view"), accuracy(name, "view_region")
    assert view is not None and both is not None, name
    architecture = ESVIT[name].architecture
    return Model("EsViT", architecture, rate, both.linear_percent / 100, parameters, view.linear_percent / 100)


def _rival(line: Rival, rate: float, parameters: int) -> Model:
    large = line.method in CONVNETS
    name = f"{line.method} {line.architecture}" if large else line.architecture
    return Model("large convnets" if large else line.method, name, rate, line.linear_percent / 100, parameters)


def _device(backbone: Backbone) -> torch.device:
    return next(backbone.parameters()).device
