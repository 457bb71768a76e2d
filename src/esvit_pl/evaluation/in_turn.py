"""Several evaluators, one after the other."""

# q query images of all ranks

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from esvit_pl.distributed import gather_in_turn
from esvit_pl.evaluation.data import EvaluationData
from esvit_pl.evaluation.interface import Evaluator, Kind

Done = Callable[[str, dict[str, float], dict[str, Tensor]], None]
"""Called with the name of an evaluator, its numbers, and what it noted: {accuracy: (q,) bool on the CPU, whether each
query image is answered right}, in the order in which one process has the images."""


class InTurn(Evaluator):
    """Evaluators of one encoder, one after the other; what each has found is handed over before the next begins.

    So a stop costs the evaluator that was at work, not those before it. All share the features of one
    pass over the images of the bank, and of one over those of the query.

    >>> import torch
    >>> from esvit_pl.evaluation import EvaluationData, InTurn, Logistic, RawPixels
    >>> images, labels = torch.eye(12).reshape(12, 3, 2, 2), torch.arange(12) % 2
    >>> data = EvaluationData([(images, labels)], [(images, labels)])
    >>> InTurn({"logistic": Logistic(C=1.0)}, lambda name, numbers, right: print(name, right)).run(RawPixels(2), data)
    logistic {'logistic/top1': tensor([True, True, True, True, True, True, True, True, True, True, True, True])}
    {'logistic/top1': 1.0, 'logistic/top5': 1.0, 'logistic/C': 1.0}

    Args:
        evaluators: {name: evaluator}.
        done: on every rank.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator], done: Done) -> None:
        self.evaluators, self.done = dict(evaluators), done

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        return any(getattr(each, "needs_labels", True) for each in self.evaluators.values())

    @property
    def reads(self) -> tuple[Kind, ...]:
        return tuple(dict.fromkeys(kind for each in self.evaluators.values() for kind in each.reads))

    @property
    def reads_bank(self) -> tuple[Kind, ...]:
        return tuple(dict.fromkeys(kind for each in self.evaluators.values() for kind in each.reads_bank))

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        data.read_for([encoder], self.evaluators.values())
        found: dict[str, float] = {}
        for name, evaluator in self.evaluators.items():
            data.answers.clear()
            numbers = evaluator.run(encoder, data)
            right = {metric: gather_in_turn(each.byte()).bool().cpu() for metric, each in data.answers.items()}
            self.done(name, numbers, right)
            found |= numbers
        return found
