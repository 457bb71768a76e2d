"""A backbone as an ONNX graph, for runtimes without torch. It is compared with the backbone before it is kept."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esvit_pl.backbones import Backbone
from esvit_pl.checkpoints.safetensors_file import PREPARATION
from esvit_pl.whole import replacing

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest value of the output."""
OUTPUTS = ("pooled", "regions")


class PooledAndRegions(nn.Module):
    """The backbone without its grid, which is not a tensor."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pooled, regions, _ = self.backbone(image)
        return pooled, regions


def export(
    backbone: Backbone, path: str | Path, *, size: int = 224, preparation: Mapping[str, Any] | None = None
) -> float:
    """Write the graph of a backbone for any number of images of one size, and compare it with the backbone.

    Its input is ``image`` (b in_chans size size), normalised; its outputs are ``pooled`` (b width) and ``regions``
    (b n region_width). The backbone is on the CPU and in eval mode afterwards.

    Args:
        backbone: any; its weights are written into the file.
        path: of the one file.
        size: side of the images in pixels.
        preparation: how images are prepared, `safetensors_file.preparation`; stands as JSON in the graph's metadata.

    Returns:
        The largest difference between onnxruntime and torch on the CPU, relative to the output's largest value. The two
        are compared on another number of images than the graph was made with.

    Raises:
        ValueError: the packages for it are missing; the graph takes one number of images only; or the two differ by
            more than `TOLERANCE`. No file is written then.
    """
    check_packages()
    model = PooledAndRegions(backbone.cpu()).eval()
    noise = torch.Generator().manual_seed(0)
    traced, compared = (
        torch.randn(number, backbone.spec.get("in_chans", 3), size, size, generator=noise) for number in (2, 3)
    )
    with torch.no_grad():
        wanted = model(compared)  # before the graph is made: masks that a backbone keeps must not be made by tracing
    with replacing(path) as draft:
        _write(model, traced, draft, {} if preparation is None else {PREPARATION: json.dumps(preparation)})
        difference = _difference(draft, compared, wanted)
        if not difference <= TOLERANCE:  # also if it is not a number
            raise ValueError(
                f"the ONNX graph differs from the backbone by {difference:.2g} of the largest value, more than "
                f"{TOLERANCE:g}: it is not written"
            )
    return difference


def check_packages() -> None:
    """Refuse to begin if an optional package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed, and ONNX needs it: pip install 'esvit_pl[onnx]'") from error


def _write(model: nn.Module, images: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's, about parts of torch and of itself
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)


def _difference(path: Path, images: Tensor, wanted: tuple[Tensor, ...]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    number = session.get_inputs()[0].shape[0]
    if not isinstance(number, str):
        raise ValueError(
            f"the ONNX graph takes {number} images at a time and no other number: the backbone's code turns the size "
            "of the batch into a plain number, as len(x) does; x.shape[0] keeps it open"
        )
    found = session.run(list(OUTPUTS), {"image": images.numpy()})
    differences = [
        (torch.from_numpy(mine) - theirs).abs().max() / theirs.abs().max()
        for mine, theirs in zip(found, wanted, strict=True)
    ]
    return float(max(differences))
