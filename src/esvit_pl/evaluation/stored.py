"""Features on the disk: written batch by batch, by several processes, and again after a stop; then one file.

Nothing here grows with the number of images but their names.
"""

# n images | k rows that are written or read at once

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from esvit_pl.safe_text import for_csv
from esvit_pl.whole import replacing

ROWS = 1024
"""So many rows are in memory at once."""
_NUMBER = np.dtype("<i8")
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # how Python writes the bytes of such a file name


class Stored(NamedTuple):
    """What a file of features holds."""

    names: Sequence[str]
    labels: np.ndarray | None
    """(n,) classes; None without labels."""
    features: Mapping[str, np.ndarray]
    """{kind: (n ...)}"""
    about: Mapping[str, Any]
    """Where they come from: weights, preparation, images."""


class FeatureFolder:
    """A folder of features on the way: every process adds rows to files of its own.

    A row counts once the number of its image is written, which comes last. So a kill costs the batch that was being
    written, and what another start finds is right.

    >>> folder = FeatureFolder("features.partial", {"weights": "abc"}, number=3)
    >>> folder.writer().add([2, 0], {"pooled": np.array([[2.0, 2.0], [0.0, 0.0]])})
    >>> folder.missing().tolist()
    [1]
    >>> FeatureFolder("features.partial", {"weights": "another"}, number=3)
    Traceback (most recent call last):
    ValueError: features.partial was begun with weights "abc", and now weights "another" came; remove it to begin anew

    Args:
        folder: made if it is not there.
        about: what the features depend on; a folder that was begun with something else is refused.
        number: n.
        begins: whether this process makes the folder, one of all.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any], *, number: int, begins: bool = True) -> None:
        self.folder, self.number = Path(folder), number
        self.about = {**about, "images": number}
        path = self.folder / "about.json"
        if path.is_file():
            different = differing(json.loads(path.read_text(encoding="utf-8")), self.about)
            if different:
                name, old, new = different
                raise ValueError(
                    f"{self.folder} was begun with {name} {old}, and now {name} {new} came; remove it to begin anew"
                )
        elif begins:
            with replacing(path) as draft:
                draft.write_text(json.dumps(self.about, indent=1) + "\n", encoding="utf-8")

    def writer(self) -> Writer:
        """For one process, until it ends."""
        return Writer(self.folder / f"part_{time.time_ns()}")

    def missing(self) -> np.ndarray:
        """Numbers of the images that have no features yet, ascending."""
        there = np.zeros(self.number, dtype=bool)
        for part in self._parts():
            there[part.numbers] = True
        return np.flatnonzero(~there)

    def merged(self, numbers: np.ndarray | None = None) -> dict[str, Path]:
        """{kind: a .npy file with a row for each image, in order}.

        Args:
            numbers: of the images that get a row; None: all.

        Raises:
            ValueError: one of them has no features yet.
        """
        numbers = np.arange(self.number) if numbers is None else numbers
        missing = np.intersect1d(self.missing(), numbers)
        if len(missing) or not len(numbers):
            first = f", the first is {missing[0]}" if len(missing) else ""
            raise ValueError(f"{len(missing)} of {len(numbers)} images have no features yet{first}")
        row_of = np.full(self.number, -1)
        row_of[numbers] = np.arange(len(numbers))
        paths: dict[str, Path] = {}
        wholes: dict[str, np.memmap[Any, Any]] = {}
        for part in self._parts():
            for kind, (dtype, shape) in part.kinds.items():
                if kind not in wholes:
                    paths[kind] = self.folder / f"{kind}.npy"
                    wholes[kind] = np.lib.format.open_memmap(paths[kind], "w+", dtype, (len(numbers), *shape))
                if not len(part.numbers):
                    continue
                rows = np.memmap(part.folder / f"{kind}.bin", dtype, "r", shape=(len(part.numbers), *shape))
                for start in range(0, len(rows), ROWS):
                    places = row_of[part.numbers[start : start + ROWS]]
                    wholes[kind][places[places >= 0]] = rows[start : start + ROWS][places >= 0]
        for whole in wholes.values():
            whole.flush()
        return paths

    def remove(self) -> None:
        """The folder and all in it."""
        shutil.rmtree(self.folder)

    def _parts(self) -> Iterator[_Part]:
        for folder in sorted(self.folder.glob("part_*")):
            if (folder / "kinds.json").is_file() and (folder / "numbers.bin").is_file():
                yield _Part.of(folder)


def differing(begun: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first entry in which two descriptions differ: its name, and both values as JSON; None if they are equal.

    >>> differing({"weights": "abc", "blocks": 4}, {"weights": "abc", "blocks": 1})
    ('blocks', '4', '1')
    """
    for name in dict.fromkeys([*begun, *now]):
        old, new = (json.dumps(each.get(name), sort_keys=True) for each in (begun, json.loads(json.dumps(now))))
        if old != new:
            return name, old, new
    return None


class _Part(NamedTuple):
    """The rows that one process has written."""

    folder: Path
    kinds: Mapping[str, tuple[str, tuple[int, ...]]]
    """{kind: (type of numbers, shape of a row)}"""
    numbers: np.ndarray
    """(k,) of the images, in the order in which they came."""

    @classmethod
    def of(cls, folder: Path) -> _Part:
        kinds = {
            kind: (dtype, tuple(shape))
            for kind, (dtype, shape) in json.loads((folder / "kinds.json").read_text(encoding="utf-8")).items()
        }
        numbers = (folder / "numbers.bin").read_bytes()
        whole = len(numbers) // _NUMBER.itemsize * _NUMBER.itemsize
        return cls(folder, kinds, np.frombuffer(numbers[:whole], _NUMBER))


class Writer:
    """Appends rows to the files of one process. Between two calls no file is open.

    Args:
        folder: of this process alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kinds: dict[str, tuple[str, tuple[int, ...]]] = {}

    def add(self, numbers: Sequence[int], features: Mapping[str, np.ndarray]) -> None:
        """Rows of some images.

        Args:
            numbers: (k,) of the images.
            features: {kind: (k ...)}, the same kinds, types and shapes in every call.
        """
        arrays = {kind: np.ascontiguousarray(rows) for kind, rows in features.items()}
        kinds = {kind: (rows.dtype.str, rows.shape[1:]) for kind, rows in arrays.items()}
        if not self._kinds:
            self.folder.mkdir(parents=True)
            with replacing(self.folder / "kinds.json") as draft:
                draft.write_text(json.dumps(kinds), encoding="utf-8")
            self._kinds = kinds
        if kinds != self._kinds or any(len(rows) != len(numbers) for rows in arrays.values()):
            raise ValueError(f"rows of {self._kinds} were begun, and {len(numbers)} of {kinds} came")
        for name, rows in {**arrays, "numbers": np.asarray(numbers, _NUMBER)}.items():  # the numbers last
            with open(self.folder / f"{name}.bin", "ab") as file:
                file.write(rows.tobytes())


# -- one file


def write_npz(
    path: Path, names: Sequence[str], labels: np.ndarray | None, features: Mapping[str, Path], about: Mapping[str, Any]
) -> Path:
    """An uncompressed .npz: ``names``, ``labels`` (if there are any), an array for each kind, and ``about`` as JSON."""
    with replacing(path) as draft, ZipFile(draft, "w") as file:

        def put(name: str, array: np.ndarray) -> None:
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)

        put("names", np.array(names, dtype=np.str_))
        if labels is not None:
            put("labels", labels)
        for kind, source in features.items():
            file.write(source, f"{kind}.npy")
        put("about", np.array(json.dumps(dict(about))))
    return path


def write_csv(path: Path, names: Sequence[str], labels: np.ndarray | None, features: Mapping[str, Path]) -> Path:
    """A line for each image: name, label (if there are any), and a column for each number of each kind."""
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        arrays = {kind: np.load(source, mmap_mode="r") for kind, source in features.items()}
        columns = [f"{kind}_{column}" for kind, rows in arrays.items() for column in range(rows[0].size)]
        writer.writerow(["name", *([] if labels is None else ["label"]), *columns])
        for index, name in enumerate(names):
            label = [] if labels is None else [int(labels[index])]
            numbers = [repr(float(number)) for rows in arrays.values() for number in rows[index].ravel()]
            writer.writerow([for_csv(name), *label, *numbers])
    return path


def write_parquet(
    path: Path, names: Sequence[str], labels: np.ndarray | None, features: Mapping[str, Path], about: Mapping[str, Any]
) -> Path:
    """A row for each image: name, label (if there are any), a list of numbers for each kind; `about` in the metadata.

    Names are texts, or all bytes where a file's name is none in UTF-8. Needs pyarrow.
    """
    import pyarrow as arrow
    import pyarrow.parquet

    arrays = {kind: np.load(source, mmap_mode="r") for kind, source in features.items()}
    kinds = {
        kind: arrow.list_(arrow.from_numpy_dtype(rows.dtype), int(np.prod(rows.shape[1:])))
        for kind, rows in arrays.items()
    }
    label_fields = [] if labels is None else [("label", arrow.int64())]
    shapes = {kind: list(rows.shape[1:]) for kind, rows in arrays.items()}
    as_bytes = [name.encode("utf-8", "surrogateescape") for name in names]
    written = arrow.binary() if any(map(_NO_UTF8.search, names)) else arrow.string()
    metadata = {"esvit_pl": json.dumps({**about, "shapes": shapes})}
    schema = arrow.schema([("name", written), *label_fields, *kinds.items()], metadata=metadata)
    with replacing(path) as draft, pyarrow.parquet.ParquetWriter(draft, schema) as file:
        for start in range(0, len(names), ROWS):
            some = slice(start, start + ROWS)
            columns = [arrow.array(as_bytes[some], written)]
            columns += [] if labels is None else [arrow.array(labels[some])]
            columns += [
                arrow.FixedSizeListArray.from_arrays(arrow.array(rows[some].ravel()), type=kinds[kind])
                for kind, rows in arrays.items()
            ]
            file.write_batch(arrow.record_batch(columns, schema=schema))
    return path


def load_features(path: str | Path, *, mapped: bool = False) -> Stored:
    """A file that `write_npz`, `write_parquet` or ``esvit-embed`` has written; a .parquet needs pyarrow.

    Args:
        mapped: leave the features on the disk, as arrays that are read where they are used; what is changed in them
            never reaches the file. Those of a .parquet are unpacked into a temporary file when they are first used.

    Raises:
        ValueError: there is no such file, or it is another one.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"the features file {path} does not exist")
    if path.suffix == ".csv":
        raise ValueError(
            f"{path} does not say of which weights and images its features are; .npz and .parquet do, so make one of "
            "these with esvit-embed"
        )
    return _load_parquet(path, mapped) if path.suffix == ".parquet" else _load_npz(path, mapped)


def _load_npz(path: Path, mapped: bool) -> Stored:
    with _of_esvit_embed(path, ".npz"), np.load(path, allow_pickle=False) as file:
        arrays = {kind: _mapped(path, kind) if mapped and kind not in _SMALL else file[kind] for kind in file}
        names, about = arrays.pop("names").tolist(), json.loads(str(arrays.pop("about")))
    return Stored(names, arrays.pop("labels", None), arrays, about)


_SMALL = ("names", "labels", "about")


def _mapped(path: Path, name: str) -> np.ndarray:
    """An array of an uncompressed .npz, on the disk."""
    with ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        where = archive.getinfo(f"{name}.npy")
        if where.compress_type != ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        np.lib.format.read_magic(member)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        behind = member.tell()
    with path.open("rb") as file:
        file.seek(where.header_offset + 26)  # of the member's own header: two lengths, then name and extra field
        lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
    start = where.header_offset + 30 + lengths + behind
    return np.memmap(path, dtype, "c", start, shape, "F" if fortran else "C")


def _load_parquet(path: Path, mapped: bool) -> Stored:
    if find_spec("pyarrow") is None:
        raise ValueError(f"{path} needs pyarrow: pip install 'esvit_pl[parquet]'; .npz does not")
    from pyarrow.parquet import ParquetFile

    with _of_esvit_embed(path, ".parquet"), ParquetFile(path) as file:
        about = json.loads(file.schema_arrow.metadata[b"esvit_pl"])
        features = _Unpacked(path, {kind: tuple(shape) for kind, shape in about.pop("shapes").items()})
        labelled = "label" in file.schema_arrow.names
        small = file.read(["name", *["label"] * labelled])
        names = small["name"].to_pylist()
        if names and isinstance(names[0], bytes):
            names = [name.decode("utf-8", "surrogateescape") for name in names]
        labels = small["label"].to_numpy() if labelled else None
    arrays = features if mapped else {kind: np.array(rows) for kind, rows in features.items()}
    return Stored(names, labels, arrays, about)


class _Unpacked(Mapping[str, np.ndarray]):
    """{kind: (n ...)} of a .parquet, each unpacked into a file without a name when it is first asked for."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.path, self.shapes = path, shapes
        self._found: dict[str, np.ndarray] = {}

    def __getitem__(self, kind: str) -> np.ndarray:
        if kind not in self._found:
            self._found[kind] = self._unpack(kind, self.shapes[kind])
        return self._found[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _unpack(self, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        from pyarrow.parquet import ParquetFile

        with (
            _of_esvit_embed(self.path, ".parquet"),
            ParquetFile(self.path, pre_buffer=False) as file,  # else it keeps all that it has read
            TemporaryFile() as unpacked,
        ):
            dtype = np.dtype(file.schema_arrow.field(kind).type.value_type.to_pandas_dtype())
            for batch in file.iter_batches(ROWS, columns=[kind]):
                rows = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                unpacked.write(rows.astype(dtype, copy=False).reshape(len(batch), *shape).tobytes())
            return np.memmap(unpacked, dtype, "c", shape=(file.metadata.num_rows, *shape))


@contextmanager
def _of_esvit_embed(path: Path, ending: str) -> Iterator[None]:
    """What reading a file of another kind raises, as one sentence."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError) as error:  # pyarrow's are among them
        if getattr(error, "errno", None):  # the operating system's: a full disk, say
            raise
        raise ValueError(f"{path} is no {ending} file of esvit-embed ({error})") from error
