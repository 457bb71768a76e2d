"""Class numbers of labels as people write them: names, numbers of any kind, or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from esvit_pl.datasets.listing import same_name, shown

Where = Callable[[int], str]


def read_labels(labels: Sequence[Any] | None, names: Sequence[str] | None, where: Where) -> list[str | int] | None:
    """Every label as a name or a whole number. The result is None if there are no labels, or if each is missing or -1.

    >>> read_labels([0, 1, 1], ["cat", "dog"], where=str)
    ['cat', 'dog', 'dog']

    Args:
        names: of the classes, if `labels` are the numbers of classes.
        where: index -> how the image is called in a message.

    Raises:
        ValueError: a label is missing, is neither a name nor a whole number, or is out of range.
    """
    if labels is None:
        return None
    read = [_label(label, index, where) for index, label in enumerate(labels)]
    if all(isinstance(label, str) and re.fullmatch("-?(0|[1-9][0-9]*)", label) for label in read):
        read = [int(str(label)) for label in read]  # as tables write numbers
    missing = [index for index, label in enumerate(read) if label is None or label == -1]
    if len(missing) == len(read):
        return None
    if missing:
        raise ValueError(
            f"{len(missing):,} of {len(read):,} labels are missing; the first is that of {where(missing[0])}. Give "
            "every image a label, or none"
        )
    if len({isinstance(label, str) for label in read}) > 1:
        raise ValueError("some labels are names and others are numbers; write all of them in one way")
    if names is None or isinstance(read[0], str):
        return read  # type: ignore[return-value]
    for index, label in enumerate(read):
        if not 0 <= label < len(names):  # type: ignore[operator]
            raise ValueError(f"the label of {where(index)} is {label}, and there are {len(names)} classes, from 0")
    return [names[int(label)] for label in read]  # type: ignore[arg-type]


def number_classes(labels: Sequence[str | int], names: Sequence[str] | None = None) -> list[str | int]:
    """The classes in the order of their numbers: `names` if they are known, else all labels that occur, sorted."""
    return list(names) if names else sorted(set(labels))


def as_numbers(labels: Sequence[str | int], classes: Sequence[str | int], what: str) -> list[int]:
    """The number of every label in `classes`.

    Raises:
        ValueError: `what` (a split's name) has classes that `classes` does not hold.
    """
    number = {_key(name): index for index, name in enumerate(classes)}
    unknown = sorted({str(label) for label in labels if _key(label) not in number})
    if unknown:
        few = [shown(str(name)) for name in classes[:5]]
        raise ValueError(
            f"{what} has {len(unknown)} classes that the training images do not have: "
            f"{', '.join(map(shown, unknown[:5]))}; there are {len(classes)}: {', '.join(few)}"
        )
    return [number[_key(label)] for label in labels]


def _key(label: str | int) -> str | int:
    return same_name(label) if isinstance(label, str) else label


def _label(label: Any, index: int, where: Where) -> str | int | None:
    if hasattr(label, "item") and getattr(label, "ndim", 1) == 0:
        label = label.item()  # of numpy, or a tensor
    if label is None or label == "" or label != label:  # the last is NaN, as tables write "missing"
        return None
    if isinstance(label, str):
        return label.strip()
    if isinstance(label, Integral) or (isinstance(label, Real) and float(label).is_integer()):
        return int(label)  # type: ignore[call-overload, no-any-return]
    raise ValueError(
        f"the label of {where(index)} is {shown(repr(label)[:60])} ({type(label).__name__}); a label is the name of "
        "the class or its number"
    )
