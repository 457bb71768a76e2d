"""The loader of every split, and what other rooms ask a loader."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from esvit_pl.data.at_work import LoadingStopped, in_words


class ResumableLoader(DataLoader[dict[str, Any]]):
    """A DataLoader whose place in the data follows from the Trainer's count, so that it has no state of its own.

    Lightning warns about every other loader when it resumes in the middle of an epoch. A loading process that hangs or
    dies is told with the image that it was at.

    Raises:
        LoadingStopped: while it is iterated.
    """

    def __iter__(self) -> Any:
        self.batches = Batches(self.dataset, super().__iter__())
        return self.batches

    def check_worker_number_rationality(self) -> None:
        """torch's warning about more processes than cores; `ImageDataModule` says it once, in a line."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class Batches:
    """What a pass over a loader gives.

    >>> list(ResumableLoader([1, 2, 3], batch_size=3))
    [tensor([1, 2, 3])]
    """

    def __init__(self, data: Any, batches: Any) -> None:
        self._data, self._batches = data, batches  # not the loader: a cycle would keep its processes until gc comes by

    def __iter__(self) -> Batches:
        return self

    def __len__(self) -> int:
        return len(self._batches)

    def __next__(self) -> Any:
        try:
            return next(self._batches)
        except RuntimeError as error:
            sentence = self.in_words(error)
            if sentence is None:
                raise
            raise LoadingStopped(sentence) from error

    def in_words(self, error: BaseException) -> str | None:
        """What torch says about a loading process that hangs or has died, for people; None for other errors."""
        data = self._data
        if not hasattr(data, "at_work") or not hasattr(data, "images"):
            return None
        return in_words(error, getattr(self._batches, "_workers", []), data.at_work, data.images)


def stack(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items of single images -> one batch, as torch's own `default_collate`, which knows no None.

    None stays None: a view without a mask has None in every image's `masks`.
    """
    batch: dict[str, Any] = collate(items, collate_fn_map=_STACKS)
    return batch


def limited(batches: int, limit: int | float | None) -> int:
    """Batches of an epoch under a Trainer's ``limit_train_batches``: a number, a share, or None for all."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def batch_size_of(loader: Any) -> int:
    """Images in a micro-batch of one process, of any loader; the learning rate scales with it.

    Raises:
        ValueError: the loader does not tell.
    """
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if size is None:
        raise ValueError(
            f"the learning rate needs the batch size, and {type(loader).__name__} does not tell it; "
            "give the training loader or its batch_sampler an attribute batch_size"
        )
    return int(size)


def _none(items: list[None], *, collate_fn_map: Any = None) -> None:
    return None


_STACKS = {**default_collate_fn_map, type(None): _none}
