"""Logistic regression on frozen features, solved to the end, with a penalty that is chosen on held-out images."""

# n images | d channels | c classes | o outputs: c, or 1 for two classes

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.distributed import gather_in_turn, rank, sum_over_ranks
from esvit_pl.evaluation.accuracy import accuracies_over_ranks, count_correct, first_is_right
from esvit_pl.evaluation.data import EvaluationData
from esvit_pl.evaluation.features import Extracted, needed_labels
from esvit_pl.evaluation.interface import Evaluator, Kind
from esvit_pl.metrics import measure
from esvit_pl.printing import say

SEARCHED = (-6.0, 6.0)
"""Powers of ten between which C is looked for."""
LOGITS_AT_ONCE = 2**26
"""So many at once: a larger training set is gone through in parts, which add up to the same gradient."""


class LogisticModel(NamedTuple):
    """Weights that `fit_logistic` has found."""

    weight: Tensor
    """(o d)"""
    bias: Tensor
    """(o,)"""
    several: bool = False
    """Whether an image can belong to several classes, so that each output is a sigmoid of its own."""

    def probabilities(self, features: Tensor) -> Tensor:
        """(n d) -> (n c)"""
        logits = F.linear(features.to(self.weight), self.weight, self.bias)
        if self.several:
            return logits.sigmoid()
        if logits.shape[1] > 1:
            return logits.softmax(1)
        return torch.cat([-logits, logits], dim=1).sigmoid()

    def of_first_rank(self) -> LogisticModel:
        """The same weights everywhere: every rank has solved the same, and a last digit may differ."""
        weight, bias = (sum_over_ranks(x if rank() == 0 else torch.zeros_like(x)) for x in (self.weight, self.bias))
        return LogisticModel(weight, bias, self.several)


@torch.inference_mode(False)  # in which Lightning evaluates
def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    C: float,  # noqa: N803 - the name that everybody knows from scikit-learn
    num_classes: int | None = None,
    start: LogisticModel | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
    dtype: torch.dtype = torch.float64,
) -> LogisticModel:
    """The minimum of C times the sum of losses plus half the squared weights, which scikit-learn's LogisticRegression
    has, too.

    Several classes are one softmax, two classes one sigmoid; where an image can belong to several classes, each class
    is a sigmoid of its own (one against the rest). The bias is not penalised. Nothing is learnt where a label is -1.
    L-BFGS sees all images in every step, on the device of `features`.

    >>> features, labels = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
    >>> model = fit_logistic(features, labels, C=1.0)
    >>> model.probabilities(features).argmax(1).tolist()
    [0, 0, 1, 1]

    Args:
        features: (n d).
        labels: (n,) classes, 0 and up; or (n c) of 1 and 0, where an image can belong to several; -1: nobody knows.
        C: how much the losses weigh against the weights; a small one keeps the weights small.
        num_classes: c; by default the largest label, plus one, or the columns of the labels.
        start: weights to begin with, those of another C.
        tolerance: the search ends when no entry of the gradient of the mean loss is larger.
        dtype: of the weights and of all sums.

    Raises:
        ValueError: C is not above 0, fewer than two classes, a feature is not finite, or lengths do not fit.
    """
    if not C > 0:
        raise ValueError(f"C must be above 0, got {C}")
    several = labels.ndim == 2
    if features.ndim != 2 or labels.ndim not in (1, 2) or len(labels) != len(features) or not len(labels):
        raise ValueError(
            f"features must be (n, d) and labels (n,) or (n, c), got {tuple(features.shape)}, {tuple(labels.shape)}"
        )
    known = labels >= 0
    if not several and not known.all():
        features, labels = features[known], labels[known]
    if not len(labels) or not known.any():
        raise ValueError("logistic regression needs one image or more with a label, got none")
    classes = labels.shape[1] if several else int(labels.max()) + 1 if num_classes is None else num_classes
    if several and not set(labels.unique().tolist()) <= {-1, 0, 1}:
        raise ValueError(f"labels (n, c) must be 1, 0 or -1 (unknown), got {labels.unique().tolist()}")
    if not several and (classes < 2 or int(labels.max()) >= classes):
        raise ValueError(
            f"logistic regression needs two classes or more, numbered from 0; {classes} were said, and labels go from "
            f"{int(labels.min())} to {int(labels.max())}"
        )
    if not features.isfinite().all():
        raise ValueError("features must be finite, and some are not")
    outputs = classes if several or classes > 2 else 1
    # The solver sees features of mean 0 and weights that all change the loss alike: the minimum is the same, and it is
    # found in tens of steps for every C, not in thousands.
    mean = features.mean(0, dtype=dtype)
    scale = (features.var(0, correction=0).to(dtype) / 4 + 1 / (C * len(labels))).rsqrt()
    scaled, moved = (features.new_zeros(shape, dtype=dtype) for shape in ((outputs, features.shape[1]), (outputs,)))
    if start is not None:
        scaled.copy_(start.weight / scale)
        moved.copy_(start.bias + start.weight @ mean)
    features, labels = (each.clone() if each.is_inference() else each for each in (features, labels))
    parts = list(zip(*(each.split(max(1, LOGITS_AT_ONCE // outputs)) for each in (features, labels)), strict=True))
    solver = torch.optim.LBFGS(
        [scaled.requires_grad_(), moved.requires_grad_()],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def model() -> LogisticModel:
        weight = scaled * scale
        return LogisticModel(weight, moved - weight @ mean, several)

    def loss() -> Tensor:
        solver.zero_grad()
        total = model().weight.square().sum() / (2 * C * len(labels))
        total.backward()
        for some, truth in parts:
            weight, bias, _ = model()
            logits = F.linear(some.to(dtype), weight, bias)
            if several:
                wrong = F.binary_cross_entropy_with_logits(logits, truth.clamp(min=0).to(dtype), reduction="none")
                part = (wrong * (truth >= 0)).sum()
            elif outputs > 1:
                part = F.cross_entropy(logits, truth, reduction="sum")
            else:
                part = F.binary_cross_entropy_with_logits(logits[:, 0], truth.to(dtype), reduction="sum")
            part = part / len(labels)
            part.backward()
            total = total.detach() + part.detach()
        return total

    with torch.enable_grad():
        solver.step(loss)
    with torch.no_grad():
        return model()


def best_power(
    score: Callable[[float], float], lowest: float = SEARCHED[0], highest: float = SEARCHED[1], *, step: float = 2.0
) -> float:
    """The power of ten with the highest score, to an eighth: CLIP's search (Radford et al., arXiv 2103.00020, A.3).

    Every second power first, then the step is halved four times about the best; of equal scores the lowest power.

    >>> best_power(lambda power: -abs(power - 2.4))
    2.375
    """
    known: dict[float, float] = {}

    def best_of(powers: list[float]) -> float:
        known.update({power: score(power) for power in powers if power not in known})
        return min(known, key=lambda power: (-known[power], power))

    best = best_of([lowest + step * number for number in range(round((highest - lowest) / step) + 1)])
    for halving in range(1, 5):
        near = step / 2**halving
        best = best_of([power for power in (best - near, best + near) if lowest <= power <= highest])
    return best


class Logistic(Evaluator):
    """Accuracy of logistic regression on the pooled features of the bank.

    C is chosen on a part of the bank that is held out (`best_power`), on the val split where there is also a test; then
    the bank as a whole is fitted, and the query is looked at once. ``logistic/top1`` and ``logistic/top5`` are the
    fractions of the query that are right, ``logistic/C`` is what was chosen, ``logistic/held_out_top1`` is the accuracy
    there. A line tells C, and whether it lies at the border of the search.

    A data set with another metric (`Splits.metric`) is chosen and measured by it: ``logistic/per_class``,
    ``logistic/roc_auc``, or ``logistic/map11`` where an image can belong to several classes, each one against the rest.
    Images without a label are left out.

    >>> import torch
    >>> from esvit_pl.evaluation import EvaluationData, Logistic
    >>> images, labels = torch.eye(6).repeat(5, 1).reshape(30, 1, 2, 3), torch.arange(30) % 2
    >>> data = EvaluationData(bank=[(images, labels)], query=[(images, labels)])
    >>> Logistic(C=1.0).run(lambda images: images.flatten(1), data)
    {'logistic/top1': 1.0, 'logistic/top5': 1.0, 'logistic/C': 1.0}

    Args:
        C: how much the losses weigh against the weights, as scikit-learn has it; None looks for it.
        held_out: share of each class of the bank on which C is chosen.
        max_iterations: of L-BFGS, for each C.
        seed: of the part that is held out.
    """

    reads: tuple[Kind, ...] = ("pooled",)
    reads_bank: tuple[Kind, ...] = ("pooled",)
    trains = True

    def __init__(
        self,
        *,
        C: float | None = None,  # noqa: N803
        held_out: float = 0.2,
        max_iterations: int = 1000,
        seed: int = 0,
    ) -> None:
        if C is not None and not C > 0:
            raise ValueError(f"logistic regression needs C above 0, or null to look for it, got {C}")
        if not 0 < held_out < 1:
            raise ValueError(f"logistic regression needs held_out above 0 and below 1, got {held_out}")
        if max_iterations < 1:
            raise ValueError(f"logistic regression needs max_iterations of 1 or more, got {max_iterations}")
        self.C, self.held_out, self.max_iterations, self.seed = C, held_out, max_iterations, seed

    def check(self, encoder: Any, num_classes: int | None) -> None:
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"logistic regression needs two classes or more, got {num_classes}")

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        bank, query = data.features(encoder, "bank"), data.features(encoder, "query")
        several = data.metric == "map11"
        bank_labels = needed_labels("logistic regression", bank.labels, "the batches of the bank have none", several)
        query_labels = needed_labels("logistic regression", query.labels, "the batches of the query have none", several)
        features, labels = gather_in_turn(bank.features), gather_in_turn(bank_labels)  # so that the same are held out
        classes = max(data.num_classes or 0, int(labels.max()) + 1 if len(labels) else 0)
        chosen = {} if self.C is not None else self.choose(features, labels, classes, data.metric, data.tuned_from)
        penalty = chosen.get("logistic/C", self.C)
        assert penalty is not None
        how = {"C": penalty, "num_classes": classes, "max_iterations": self.max_iterations}
        model = fit_logistic(features, labels, **how).of_first_rank()  # type: ignore[arg-type]
        chosen = chosen or {"logistic/C": float(penalty)}
        if data.metric != "top1":
            scores, labels = (gather_in_turn(x) for x in (model.probabilities(query.features), query_labels))
            return {f"logistic/{data.metric}": measure(data.metric, scores, labels)} | chosen
        known = query_labels >= 0
        query, query_labels = Extracted(query.features[known], None), query_labels[known]
        right = torch.zeros(2, dtype=torch.float64, device=features.device)
        data.answers["logistic/top1"] = query_labels.new_zeros(0, dtype=torch.bool)
        if len(query_labels):  # a rank may have no query image
            probabilities = model.probabilities(query.features)
            right += count_correct(probabilities, query_labels)
            data.answers["logistic/top1"] = first_is_right(probabilities, query_labels)
        (accuracy,) = accuracies_over_ranks(right, len(query_labels))
        return {"logistic/top1": accuracy.top1, "logistic/top5": accuracy.top5} | chosen

    def choose(
        self, features: Tensor, labels: Tensor, num_classes: int, metric: str = "top1", tuned_from: int | None = None
    ) -> dict[str, float]:
        """C and the metric of the held-out part with it: of the images from `tuned_from` on, else of `held_out`."""
        if tuned_from is not None:
            away = torch.arange(len(labels), device=labels.device) >= tuned_from
        elif labels.ndim == 2:
            away = held_out(labels.new_zeros(len(labels)), self.held_out, self.seed)
        else:
            away = held_out(labels, self.held_out, self.seed)
        models: dict[float, LogisticModel] = {}
        scores: dict[float, float] = {}

        def score(power: float) -> float:
            near = min(models, key=lambda known: abs(known - power), default=None)
            models[power] = fit_logistic(
                features[~away],
                labels[~away],
                C=10**power,
                num_classes=num_classes,
                start=None if near is None else models[near],
                max_iterations=self.max_iterations,
            )
            scores[power] = measure(metric, models[power].probabilities(features[away]), labels[away])
            return scores[power]

        best = best_power(score)
        if rank() == 0:
            border = ", the border of the search," if best in SEARCHED else ""
            say(f"logistic regression: C={10**best:.3g}{border} was chosen on {int(away.sum())} images held out")
        return {"logistic/C": 10**best, f"logistic/held_out_{metric}": scores[best]}


def held_out(labels: Tensor, share: float, seed: int) -> Tensor:
    """(n,) true for about this share of the images of each class; one image or more stays.

    Raises:
        ValueError: no class has two images.
    """
    generator = torch.Generator().manual_seed(seed)
    away = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        places = (labels == label).nonzero()[:, 0].cpu()
        number = min(math.ceil(share * len(places)), len(places) - 1)
        away[places[torch.randperm(len(places), generator=generator)[:number]]] = True
    if not away.any():
        raise ValueError("C cannot be chosen, for no class has two images; give C=, such as C=1")
    return away.to(labels.device)
