"""Files that are whole: a kill leaves the old file or the new one, and damage is noticed when a file is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import ZipFile

CHUNK = 2**20


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; that file takes the place of `path` when the block ends without an error.

    Its bytes are on the disk before its name changes, so that no reader ever finds a part of it, whatever ends the
    process or the machine. A process that is killed leaves the draft, and the next one begins it anew. The folder is
    made.

    >>> with replacing("a/file.txt") as draft:
    ...     _ = draft.write_text("whole")
    >>> Path("a/file.txt").read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name[:200]}.tmp")
    draft.unlink(missing_ok=True)  # it may be another name of a file that is in use
    try:
        yield draft
        _to_disk(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    with suppress(OSError):  # some file systems cannot do this to a folder
        _to_disk(path.parent)


def damage(path: Path) -> str | None:
    """What has happened to a file of ``torch.save`` since it was written: None, or the end of a sentence.

    torch writes a checksum of every tensor, and does not look at it when it reads. Files in torch's format of before
    2020, and those that were written with ``set_crc32_options(False)``, have none and pass.

    >>> import torch
    >>> torch.save({"weight": torch.zeros(100)}, "a.ckpt")
    >>> damage(Path("a.ckpt"))
    >>> content = bytearray(Path("a.ckpt").read_bytes())
    >>> content[content.index(bytes(400)) + 7] = 1
    >>> _ = Path("b.ckpt").write_bytes(content)
    >>> damage(Path("b.ckpt"))
    'is damaged: a/data/0 is not what was written'
    """
    with path.open("rb") as file:
        start = file.read(2)
    if not start:
        return "is empty (0 bytes)"
    if start != b"PK":
        return None
    name = ""
    try:
        with ZipFile(path) as archive:
            parts = archive.infolist()
            for part in parts if any(part.CRC for part in parts) else ():
                name = part.filename
                with archive.open(part) as content:
                    while content.read(CHUNK):
                        pass
    except Exception:  # zipfile raises BadZipFile, EOFError, NotImplementedError or zlib's, by the bit that is wrong
        return f"is damaged: {name} is not what was written" if name else "is cut short"
    return None


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
