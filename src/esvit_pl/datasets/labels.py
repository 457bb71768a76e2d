"""Class numbers of labels as people write them: names, numbers of any kind, or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

from esvit_pl.datasets.listing import same_name, shown

Where = Callable[[int], str]
MISSING = frozenset(("", "nan", "NaN", "NA", "N/A", "#N/A", "<NA>", "NULL"))
"""How tables write that there is no label."""
NUMBER = r"-?(0|[1-9][0-9]{0,14})(\.[0-9]*)?"


class Labels(NamedTuple):
    """The labels of a split as they were given."""

    values: Sequence[Any] | None = None
    """A name or a number for each image, or None."""
    names: Sequence[str] | None = None
    """The names of the classes, where `values` are their numbers."""
    where: Where = "item {}".format
    """Index -> what an image is called in a message."""


def number_labels(splits: Mapping[str, Labels]) -> tuple[list[str] | None, dict[str, list[int] | None]]:
    """The names of the classes, and for each split the class number of every image; None without labels.

    The classes are those of the split "train", in the order of their names if it gives names, else sorted.

    >>> number_labels({"train": Labels(["dog", "cat"]), "val": Labels(["dog"])})
    (['cat', 'dog'], {'train': [1, 0], 'val': [1]})

    Raises:
        ValueError: as `read_labels`, or a split has classes that "train" does not have.
    """
    read = {split: read_labels(labels) for split, labels in splits.items()}
    trained, names = read["train"], splits["train"].names
    if trained is None:
        return None, dict.fromkeys(splits)
    classes: list[str | int] = list(names) if names else sorted(set(map(_key, trained)))
    numbers = {split: None if found is None else _numbers(found, classes, split) for split, found in read.items()}
    return [str(name) for name in classes], numbers


def read_labels(labels: Labels) -> list[str | int] | None:
    """Every label as a name or a whole number; None if there are no labels, or if each of them is missing or -1.

    >>> read_labels(Labels([0, 1, 1], names=["cat", "dog"]))
    ['cat', 'dog', 'dog']

    Raises:
        ValueError: a label is missing, is neither a name nor a whole number, or is out of range.
    """
    values, names, where = labels
    if values is None:
        return None
    read = [_label(label, index, where) for index, label in enumerate(values)]
    if all(label is None or (isinstance(label, str) and re.fullmatch(NUMBER, label)) for label in read):
        # as tables write numbers
        read = [label if label is None else _label(float(label), index, where) for index, label in enumerate(read)]
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


def _numbers(labels: Sequence[str | int], classes: Sequence[str | int], split: str) -> list[int]:
    number = {_key(name): index for index, name in enumerate(classes)}
    unknown = sorted({str(label) for label in labels if _key(label) not in number})
    if unknown:
        few = [shown(str(name)) for name in classes[:5]]
        raise ValueError(
            f"{split} has {len(unknown)} classes that the training images do not have: "
            f"{', '.join(map(shown, unknown[:5]))}; there are {len(classes)}: {', '.join(few)}"
        )
    return [number[_key(label)] for label in labels]


def _key(label: str | int) -> str | int:
    return same_name(label) if isinstance(label, str) else label


def _label(label: Any, index: int, where: Where) -> str | int | None:
    if hasattr(label, "item") and getattr(label, "ndim", 1) == 0:
        label = label.item()  # of numpy, or a tensor
    if getattr(label, "ndim", 0):
        raise _no_label(label, index, where)  # one-hot, say
    if isinstance(label, str):
        return None if label.strip() in MISSING else label.strip()
    if label is None or label != label:  # the last is NaN
        return None
    if isinstance(label, Integral) or (isinstance(label, Real) and float(label).is_integer()):
        return int(label)  # type: ignore[call-overload, no-any-return]
    raise _no_label(label, index, where)


def _no_label(label: Any, index: int, where: Where) -> ValueError:
    return ValueError(
        f"the label of {where(index)} is {shown(repr(label)[:60])} ({type(label).__name__}); a label is the name of "
        "the class or its number"
    )
