"""What a trained network is compared with: features that nobody learnt, in the shape of a backbone."""

# b images | c channels | s side in pixels

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.backbones.interface import Backbone, Features
from esvit_pl.evaluation.data import EvaluationData
from esvit_pl.evaluation.interface import Evaluator, Kind
from esvit_pl.evaluation.names import PRETRAINED


class Baselines(Evaluator):
    """The same probes on an encoder and on what it is compared with: ``knn/pretrained``, ``knn/raw_pixels``, ...

    Each of these is the probe's first number; everything that the probes answer about the encoder itself stands beside
    them, under its own name.

    >>> import torch
    >>> from esvit_pl.evaluation import KNN, Baselines, EvaluationData, GreyHistogram, RawPixels
    >>> images, labels = torch.eye(12).reshape(12, 3, 2, 2), torch.arange(12) % 3
    >>> data = EvaluationData([(images, labels)], [(images, labels)])
    >>> Baselines({"knn": KNN(k=1)}, {"histogram": GreyHistogram()}).run(RawPixels(side=2), data)
    {'knn/top1': 1.0, 'knn/top5': 1.0, 'knn/pretrained': 1.0, 'knn/histogram': 0.3333333333333333}

    Args:
        probes: {name: evaluator}.
        encoders: {row: encoder} to compare with, rows as in `names.ROWS`.
        alone: {name: evaluator} that only the encoder is asked.
        looks: {row: evaluator}, of `PRETRAINED` and of `encoders`: asked about that row, and its numbers are left out.
        together: read the images once for all rows, for few images: the features of all rows are in memory together.
            Otherwise those of one row at a time.
    """

    def __init__(
        self,
        probes: Mapping[str, Evaluator],
        encoders: Mapping[str, nn.Module],
        *,
        alone: Mapping[str, Evaluator] | None = None,
        looks: Mapping[str, Evaluator] | None = None,
        together: bool = False,
    ) -> None:
        self.probes, self.encoders, self.alone = dict(probes), dict(encoders), dict(alone or {})
        self.looks, self.together = dict(looks or {}), together
        self.metrics: dict[str, str] = {}
        """{probe: the metric that its number is}, known after `run`."""

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        return any(getattr(probe, "needs_labels", True) for probe in self.all.values())

    @property
    def reads(self) -> tuple[Kind, ...]:
        return tuple(dict.fromkeys(kind for probe in self.all.values() for kind in probe.reads))

    def check(self, encoder: Any, num_classes: int | None) -> None:
        for probe in self.all.values():
            probe.check(encoder, num_classes)

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        kinds = tuple(
            dict.fromkeys(kind for probe in (*self.probes.values(), *self.looks.values()) for kind in probe.reads)
        )
        if self.together and self.encoders and self.probes:
            rows = [encoder, *(data.place.module(other).eval() for other in self.encoders.values())]
            data.read(rows, "bank", kinds)
            data.read(rows, "query", kinds)
        answers = self._ask(encoder, data, self.all, self.looks.get(PRETRAINED))
        noted = dict(data.answers)
        self.metrics = {name: next(iter(answer)) for name, answer in answers.items()}
        found = {metric: value for answer in answers.values() for metric, value in answer.items()}
        found |= {f"{name}/{PRETRAINED}": answer[self.metrics[name]] for name, answer in answers.items()}
        for row, other in self.encoders.items():
            answers = self._ask(data.place.module(other).eval(), data, self.probes, self.looks.get(row))
            found |= {f"{name}/{row}": next(iter(answer.values())) for name, answer in answers.items()}
            other.cpu()
        data.answers = noted  # of the encoder
        return found

    @property
    def all(self) -> dict[str, Evaluator]:
        """What the encoder is asked."""
        return {**self.probes, **self.alone}

    @staticmethod
    def _ask(
        encoder: Any, data: EvaluationData, probes: Mapping[str, Evaluator], look: Evaluator | None
    ) -> dict[str, dict[str, float]]:
        asked = [*probes.values(), *([] if look is None else [look])]
        data.read([encoder], "query", tuple(dict.fromkeys(kind for probe in asked for kind in probe.reads)))
        answers = {name: probe.run(encoder, data) for name, probe in probes.items()}
        if look is not None:
            look.run(encoder, data)
        return answers


class _Baseline(Backbone):
    """A backbone without parameters: one region, and one block that gives the pooled feature."""

    patch_size = 1

    def __init__(self, width: int, **spec: object) -> None:
        super().__init__()
        self.width = self.region_width = width
        self.spec = spec

    def describe(self, x: Tensor) -> Tensor:
        """(b c h w) -> (b width)"""
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        feature = self.describe(x)
        return Features(feature, feature[:, None], (1, 1))

    def last_blocks(self, x: Tensor, n: int) -> Tensor:
        """The pooled feature, whatever `n`."""
        return self.describe(x)

    def last_blocks_width(self, n: int) -> int:
        return self.width


class RawPixels(_Baseline):
    """The image itself, averaged down to `side` x `side` pixels where it is larger.

    >>> import torch
    >>> RawPixels(side=8)(torch.zeros(2, 3, 32, 32)).pooled.shape
    torch.Size([2, 192])

    Args:
        side: in pixels.
        channels: of the images.
    """

    def __init__(self, side: int = 32, channels: int = 3) -> None:
        if side < 1:
            raise ValueError(f"RawPixels needs a side of 1 pixel or more, got {side}")
        super().__init__(channels * side * side, name="raw_pixels", side=side, channels=channels)
        self.side = side

    def describe(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.side).flatten(1)


class GreyHistogram(_Baseline):
    """How often each grey level occurs: how far the distribution of grey alone goes, without any form.

    Square roots of the frequencies, so that a cosine compares two distributions (Bhattacharyya's coefficient), scaled
    to a mean square of 1.

    >>> import torch
    >>> GreyHistogram(bins=2)(torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 2, 2)).pooled
    tensor([[1., 1.]])

    Args:
        bins: equal ones, from the image's own darkest to its brightest pixel: blind to brightness and contrast.
    """

    def __init__(self, bins: int = 16) -> None:
        if bins < 2:
            raise ValueError(f"GreyHistogram needs 2 bins or more, got {bins}")
        super().__init__(bins, name="grey_histogram", bins=bins)
        self.bins = bins

    def describe(self, x: Tensor) -> Tensor:
        grey = x.float().mean(1).flatten(1)  # (b pixels)
        low, high = torch.aminmax(grey, dim=1, keepdim=True)
        level = (grey - low) / (high - low + 1e-12) * self.bins
        counts = grey.new_zeros(len(x), self.bins)
        counts.scatter_add_(1, level.floor().clamp(0, self.bins - 1).long(), torch.ones_like(grey))
        return (counts * (self.bins / grey.shape[1])).sqrt()
