"""Files that people give for weights and that are something else: what they are, in a sentence."""

from __future__ import annotations

import codecs
import tarfile
import zipfile
from pathlib import Path

from esvit_pl.checkpoints.locate import listed

_BEGINNINGS = {
    b"\x1f\x8b": "it is compressed with gzip; unpack it first (gunzip, or tar -xzf)",
    b"BZh": "it is compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "it is compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; unpack it first",
    b"7z\xbc\xaf": "it is a 7z archive; unpack it first",
    b"Rar!": "it is a rar archive; unpack it first",
    b"\x93NUMPY": "it is an array of numpy; save the weights with torch.save or as safetensors",
    b"\x89HDF": "it is an HDF5 file, as Keras writes; save the weights with torch.save or as safetensors",
    b"\x89PNG": "it is a picture",
    b"\xff\xd8\xff": "it is a picture",
    b"version https://git-lfs": "it is a pointer of git-lfs, and the weights were not fetched; run git lfs pull",
}
_OF_TORCH = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # what torch.save wrote first before it wrote zip files


def refuse_other_files(path: Path) -> None:
    """Refuse a file that is recognised as something else than weights.

    Raises:
        ValueError: what it is, and what to do.
    """
    why = _what_it_is(path)
    if why is not None:
        raise ValueError(f"{path} cannot be read as a checkpoint: {why}")


def _what_it_is(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        return "it is empty (0 bytes); download or save it again"
    for beginning, what in _BEGINNINGS.items():
        if head.startswith(beginning):
            return what
    if head.startswith(b"\x80") and _OF_TORCH not in head[:32]:
        return (
            "it is a pickle that torch.save did not write, and nothing of it was run; save the weights with torch.save "
            "or as safetensors"
        )
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[257:262] == b"ustar":
        with tarfile.open(path) as archive:
            return f"it is a tar archive that holds {listed(archive.getnames())}; unpack it first (tar -xf)"
    text = _text(head)
    if text is None:
        return None
    if text.lower().startswith(("<!doctype", "<html", "<?xml")):
        return "it is a web page; the server sent it in place of the file (a login, or a limit), so download it again"
    if '"weight_map"' in text or ('"metadata"' in text and path.name.endswith(".index.json")):
        return "it is the index of weights in several files; save them as one"
    return f"it is a text file, which begins with {text[:40]!r}"


def _zip(path: Path) -> str | None:
    if not zipfile.is_zipfile(path):
        return f"its end is missing ({path.stat().st_size} bytes are there); download or copy it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return "it is a program (TorchScript), and nothing of it was run; save the weights alone, model.state_dict()"
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "it is an archive of numpy (.npz); save the weights with torch.save or as safetensors"
    return f"it is a zip archive that holds {listed(names)}; unpack it first"


def _text(head: bytes) -> str | None:
    """The beginning of a text; None for anything else."""
    head = head.removeprefix(codecs.BOM_UTF8)
    text = head.decode("utf-8", errors="ignore").strip()
    readable = b"\0" not in head and all(char.isprintable() or char.isspace() for char in text)
    return text if readable and len(text.encode()) > 0.9 * len(head.strip()) else None
