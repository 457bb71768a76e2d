"""Where a training stands, in the counters of Lightning's loops.

One number says it: the micro-batches that are done. Lightning keeps some thirty counters beside it, and a checkpoint's
depend on the hook that saved it, so that some are read again as another place. Here all of them follow from the number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Trainer


def between_batches(loops: Mapping[str, Any], batches: int, accumulate: int) -> dict[str, Any]:
    """The loops' state of a checkpoint, as if it had been saved between two micro-batches, or between two epochs.

    Args:
        loops: ``checkpoint["loops"]``.
        batches: micro-batches in an epoch.
        accumulate: micro-batches in an optimizer step.

    >>> loops = {"fit_loop": Trainer(logger=False).fit_loop.state_dict()}
    >>> loops["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] = 6
    >>> between_batches(loops, batches=4, accumulate=2)["fit_loop"]["epoch_loop.batch_progress"]["current"]
    {'ready': 2, 'completed': 2, 'started': 2, 'processed': 2}
    """
    fit = loops["fit_loop"]
    done = fit["epoch_loop.batch_progress"]["total"]["processed"]
    epochs, inside = divmod(done, batches)
    optimizer = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    steps = optimizer["step"]["total"]["completed"]
    begun = epochs + (inside > 0)
    in_epoch = {"ready": begun, "started": begun, "processed": epochs, "completed": epochs}
    state = {
        **fit,
        "epoch_loop.state_dict": {**fit["epoch_loop.state_dict"], "_batches_that_stepped": steps},
        "epoch_loop.batch_progress": {
            **_all(fit["epoch_loop.batch_progress"], done, inside),
            "is_last_batch": False,
        },
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {name: _all(counts, steps, inside // accumulate) for name, counts in optimizer.items()}
        },
        "epoch_progress": {
            span: {name: in_epoch[name] for name in counts} for span, counts in fit["epoch_progress"].items()
        },
    }
    return {**loops, "fit_loop": state}


def last_epoch(loops: Mapping[str, Any], batches: int) -> int:
    """The epoch of the last micro-batch that is done, from the loops' state of a checkpoint; 0 before the first."""
    done: int = loops["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    return max(done - 1, 0) // batches


def recount_batches(loops: dict[str, Any], was: int, now: int) -> None:
    """Count the micro-batches of a checkpoint as if each step had accumulated `now` of them instead of `was`."""
    progress = loops["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update({name: count * now // was for name, count in counts.items()})


def stand_at(trainer: Trainer, epoch: int, batches: int, steps: int) -> None:
    """Let a Trainer that has not begun count as if `epoch` epochs of so many batches and optimizer steps were done."""
    fit, inner = trainer.fit_loop, trainer.fit_loop.epoch_loop
    optimizer = inner.automatic_optimization.optim_progress.optimizer
    counts = [
        (epoch, (fit.epoch_progress.total, fit.epoch_progress.current)),
        (epoch * batches, (inner.batch_progress.total,)),
        (epoch * steps, (optimizer.step.total, optimizer.zero_grad.total)),
    ]
    for count, trackers in counts:
        for tracker in trackers:
            for name in ("ready", "started", "processed", "completed"):
                if getattr(tracker, name, None) is not None:
                    setattr(tracker, name, count)
    inner._batches_that_stepped = epoch * steps  # the step that loggers see


def _all(progress: Mapping[str, Any], total: int, current: int) -> dict[str, Any]:
    return {
        "total": dict.fromkeys(progress["total"], total),
        "current": dict.fromkeys(progress["current"], current),
    }
