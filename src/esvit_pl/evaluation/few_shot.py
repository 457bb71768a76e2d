"""Classification from a few images of each class."""

# n images of a class | q query images | d channels | c classes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.distributed import dealt_in_turn, gather_over_ranks, gather_uneven, rank
from esvit_pl.evaluation.accuracy import accuracies_over_ranks, count_correct
from esvit_pl.evaluation.data import EvaluationData
from esvit_pl.evaluation.features import Extracted, needed_labels
from esvit_pl.evaluation.interface import Evaluator, Kind
from esvit_pl.evaluation.logistic import LogisticModel, fit_logistic
from esvit_pl.evaluation.names import few_shot_metrics
from esvit_pl.printing import say_once
from esvit_pl.safe_text import for_terminal

Classifier = Literal["logistic", "centroid"]
NAMED = 5
"""How many of the classes that are left out are printed by name."""


class FewShot(Evaluator):
    """Accuracy of a classifier that sees n images of each class of the bank, drawn several times.

    ``few_shot/top1`` is the mean over the draws for the first n, ``few_shot/spread`` their standard deviation; further
    n are ``few_shot/n<n>/top1`` and ``few_shot/n<n>/spread``. The images of a smaller n are among those of a larger
    one. A class with fewer than n images is left out for this n, of the query too, and a line names it.

    Features are scaled to unit length. "logistic" is `fit_logistic`, for a logistic regression on frozen features is
    how self-supervised encoders are compared on few labels (Assran et al., MSN, arXiv 2204.07141). "centroid" takes the
    class whose mean feature has the largest cosine (Wang et al., SimpleShot, arXiv 1911.04623); it takes no time.

    >>> import torch
    >>> from esvit_pl.evaluation import EvaluationData, FewShot
    >>> images, labels = torch.eye(2).repeat(10, 1), torch.arange(20) % 2
    >>> FewShot(n=[1, 5]).run(lambda images: images, EvaluationData([(images, labels)], [(images, labels)]))
    {'few_shot/top1': 1.0, 'few_shot/spread': 0.0, 'few_shot/n5/top1': 1.0, 'few_shot/n5/spread': 0.0}

    Args:
        n: images of each class, one number or several, the main one first.
        draws: how often they are drawn.
        classifier: "logistic" or "centroid".
        C: of the logistic regression, as scikit-learn has it; so few images leave none on which it could be chosen.
        max_iterations: of L-BFGS.
        seed: of the draws.
    """

    reads: tuple[Kind, ...] = ("pooled",)
    reads_bank: tuple[Kind, ...] = ("pooled",)

    def __init__(
        self,
        *,
        n: int | Sequence[int] = (1, 5, 10),
        draws: int = 5,
        classifier: Classifier = "logistic",
        C: float = 1.0,  # noqa: N803
        max_iterations: int = 1000,
        seed: int = 0,
    ) -> None:
        self.n = list(dict.fromkeys([n] if isinstance(n, int) else n))
        for name, number in (("n", min(self.n, default=0)), ("draws", draws), ("max_iterations", max_iterations)):
            if number < 1:
                raise ValueError(f"few-shot classification needs {name} of 1 or more, got {number if self.n else n}")
        if classifier not in ("logistic", "centroid"):
            raise ValueError(f"few-shot classification needs classifier logistic or centroid, got {classifier}")
        if not C > 0:
            raise ValueError(f"few-shot classification needs C above 0, got {C}")
        self.draws, self.classifier, self.C = draws, classifier, C
        self.max_iterations, self.seed = max_iterations, seed
        self.trains = classifier == "logistic"

    def check(self, encoder: Any, num_classes: int | None) -> None:
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"few-shot classification needs two classes or more, got {num_classes}")

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        bank, query = data.features(encoder, "bank"), data.features(encoder, "query")
        own = needed_labels("few-shot classification", bank.labels, "the batches of the bank have none")
        asked = needed_labels("few-shot classification", query.labels, "the batches of the query have none")
        labels, before = gather_uneven(own), int(gather_over_ranks(torch.tensor([len(own)]).to(own))[: rank()].sum())
        # Images of the bank are called by their places in the order of one process, so that the same ones are drawn.
        places = torch.tensor(dealt_in_turn(len(labels)), dtype=torch.long, device=labels.device)
        mine = places[before : before + len(own)]
        labels = labels[places.argsort()]
        generator = torch.Generator().manual_seed(self.seed)
        draws = [drawn(labels, generator) for _ in range(self.draws)]
        accuracies: dict[int, list[float]] = {}
        for n in self.n:
            classes = self.classes(labels, n, data.class_names)
            if len(classes) < 2:
                say_once(f"few-shot: n={n} is left out, for fewer than two classes have {n} images")
                continue
            kept = torch.isin(asked, classes)
            there = Extracted(query.features[kept], torch.searchsorted(classes, asked[kept]))
            accuracies[n] = []
            for order in draws:
                chosen = (order < n) & torch.isin(labels, classes)
                of_mine = chosen[mine]
                features, numbers = gather_uneven(bank.features[of_mine]), gather_uneven(mine[of_mine])
                features = features[numbers.argsort()]
                model = self.fit(features, torch.searchsorted(classes, labels[chosen]), len(classes))
                right = torch.zeros(2, dtype=torch.float64, device=features.device)
                if len(there.features) and there.labels is not None:  # a rank may have no query image
                    right += count_correct(model.probabilities(F.normalize(there.features, dim=1)), there.labels)
                (accuracy,) = accuracies_over_ranks(right, len(there.features))
                accuracies[n].append(accuracy.top1)
        if not accuracies:
            raise ValueError(f"few-shot classification needs two classes with {min(self.n)} images or more in the bank")
        return few_shot_metrics(accuracies)

    def classes(self, labels: Tensor, n: int, names: Sequence[str] | None) -> Tensor:
        """(c,) the classes with n images or more; a line names the others."""
        counts = labels.bincount()
        few = ((counts > 0) & (counts < n)).nonzero()[:, 0].tolist()
        if few:
            called = [f"{for_terminal(names[i]) if names else f'class {i}'} ({counts[i]})" for i in few[:NAMED]]
            more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
            say_once(f"few-shot: n={n} leaves out classes with fewer images: {', '.join(called)}{more}")
        return (counts >= n).nonzero()[:, 0]

    def fit(self, features: Tensor, labels: Tensor, num_classes: int) -> LogisticModel:
        """The classifier of a few images (n d); the same on every rank."""
        features = F.normalize(features, dim=1)
        if self.classifier == "centroid":
            sums = features.new_zeros(num_classes, features.shape[1], dtype=torch.float64)
            weight = F.normalize(sums.index_add_(0, labels, features.double()), dim=1)
            return LogisticModel(weight, weight.new_zeros(num_classes))
        found = fit_logistic(features, labels, C=self.C, num_classes=num_classes, max_iterations=self.max_iterations)
        return found.of_first_rank()


def drawn(labels: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) the place of each image among those of its class, in the order in which they are drawn.

    >>> drawn(torch.tensor([0, 1, 0, 0]), torch.Generator().manual_seed(0)).tolist()
    [0, 0, 2, 1]
    """
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    order = order[labels[order].argsort(stable=True)]  # class by class
    counts = labels.bincount()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[labels[order]]
    return place
