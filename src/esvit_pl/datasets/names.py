"""Names of images in one block of bytes: a million of them cost no Python object each, and a file holds them as they
are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """A list of names.

    >>> names = Names.of(["cat/1.jpg", "dog/1.jpg"])
    >>> names[1], len(names), names == ["cat/1.jpg", "dog/1.jpg"]
    ('dog/1.jpg', 2, True)

    Args:
        block: uint8, the bytes of all names, each followed by a null byte.
        ends: int64, where the bytes of each name and its null byte end in the block.
    """

    def __init__(self, block: np.ndarray, ends: np.ndarray) -> None:
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, names: Iterable[str | bytes]) -> Names:
        encoded = [os.fsencode(name) for name in names]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        block = b"".join([name + b"\0" for name in encoded])
        return cls(np.frombuffer(block, np.uint8), (lengths + 1).cumsum())

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        starts = np.cumsum([0, *(len(part.block) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts[:-1], strict=True)]
        none = Names.of([])
        return cls(np.concatenate([none.block, *(part.block for part in parts)]), np.concatenate([none.ends, *ends]))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start = int(self.ends[number - 1]) if number else 0
        return os.fsdecode(self.block[start : int(self.ends[number]) - 1].tobytes())

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def digest(self) -> str:
        """The same for the same names in the same order, whatever holds them; every checkpoint has it."""
        if sys.getfilesystemencoding() == "utf-8":
            return blake2b(self.block.data, digest_size=8).hexdigest()
        return digest_of(self)


def digest_of(names: Iterable[str]) -> str:
    """`Names.digest` of any names."""
    digest = blake2b(digest_size=8)
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
