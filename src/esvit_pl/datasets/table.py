"""Images that a table lists: a row for each, with the path of its file, and perhaps its label and split."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from esvit_pl.datasets.bad_images import Reading
from esvit_pl.datasets.folder import FolderDataset, existing
from esvit_pl.datasets.interface import Splits
from esvit_pl.datasets.labels import Labels, Where, number_labels
from esvit_pl.datasets.layout import split_named
from esvit_pl.datasets.listing import EXTENSIONS, TABLES, ending, shown

PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "img_path", "image", "img")
LABELS = ("label", "labels", "class", "class_name", "category", "target")
SPLITS = ("split", "subset", "partition")


class Rows(NamedTuple):
    """The columns of a table, and how a row is called in a message."""

    columns: Mapping[str, Sequence[Any]]
    where: Where
    title: str


def table(
    file: str | Path,
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    root: str | Path | None = None,
    val_fraction: float = 0.1,
    **reading: Any,
) -> Splits:
    """The images that a CSV, TSV or Parquet file lists; its first line names the columns.

    Args:
        file: the table.
        path_column: holds the paths of the image files; by default the first of path, file, filename, image, ...
        label_column: holds names or numbers of classes; by default label, class, category or target if there is one.
        split_column: holds train, val or test, in the spellings of folders; by default split, subset or partition if
            there is one. Rows of test are never read.
        root: the folder from which relative paths count; by default the folder of the table.
        val_fraction: the share of images that become the query where no row belongs to val.
        reading: of `Reading`: value_range, background, max_pixels, on_bad_image, bad_image_budget.

    Raises:
        ValueError: the table cannot be read, lacks a column, or a row has no file, no label or an unknown split; the
            message names the line.
    """
    if file is None or not str(file).strip():
        raise ValueError("file is empty; give the table of your images (dataset.file=FILE)")
    path = Path(str(file)).expanduser()
    base = existing(root) if root is not None and str(root) else path.parent
    columns = {"path_column": path_column, "label_column": label_column, "split_column": split_column}
    return splits_of_rows(read_rows(path), columns, str(base), val_fraction=val_fraction, reading=Reading(**reading))


def read_rows(path: Path) -> Rows:
    """The table in a file.

    Raises:
        ValueError: there is no such file, or it is no table of this kind.
    """
    title = f"'{shown(path)}'"
    if not path.is_file():
        raise ValueError(f"the table {title} does not exist")
    kind = ending(path.name)
    if kind not in TABLES:
        raise ValueError(f"{title} is no table that is read here; give a file of {', '.join(TABLES)}")
    if kind == ".parquet":
        return Rows(_parquet(path), lambda index: f"row {index} of {title}", title)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{title} is not written in UTF-8 ({error}); save it so") from error
    first = text.partition("\n")[0]
    separator = "\t" if kind == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator)
    header = next(reader, [])
    if any(name.lower().endswith(EXTENSIONS) for name in header):
        raise ValueError(f"the first line of {title} names an image ({shown(first)}); it must name the columns")
    names = [name.strip() for name in header if name.strip()]
    if len(set(names)) < len(names):
        raise ValueError(f"two columns of {title} have the same name: {', '.join(map(shown, header))}")
    rows, lines = [], []
    for row in reader:
        if row:
            if len(row) != len(header):
                raise ValueError(
                    f"line {reader.line_num} of {title} has {len(row)} cells, and the first line {len(header)}; put "
                    "cells that hold the separator in quotes"
                )
            rows.append(row)
            lines.append(reader.line_num)
    cells = zip(*rows, strict=True) if rows else ([] for _ in header)
    columns = {name.strip(): cell for name, cell in zip(header, cells, strict=True)}
    return Rows(columns, lambda index: f"line {lines[index]} of {title}", title)


def _parquet(path: Path) -> dict[str, list[Any]]:
    for library, read in (("pyarrow.parquet", "read_table"), ("pandas", "read_parquet")):
        try:
            found = getattr(import_module(library), read)(path)
        except ImportError:
            continue
        columns: dict[str, list[Any]] = found.to_pydict() if hasattr(found, "to_pydict") else found.to_dict("list")
        return columns
    raise ValueError(f"'{shown(path)}' is a Parquet file, which pyarrow reads; pip install pyarrow, or save it as CSV")


def splits_of_rows(
    rows: Rows, asked: Mapping[str, str | None], root: str, *, val_fraction: float, reading: Reading
) -> Splits:
    """Turn rows into data sets; `asked` has the columns' names by argument of `table`."""
    paths = _column(rows, "path_column", asked["path_column"], PATHS)
    labels = _column(rows, "label_column", asked["label_column"], LABELS)
    splits = _column(rows, "split_column", asked["split_column"], SPLITS)
    if paths is None:
        raise ValueError(
            f"{rows.title} has no column called {', '.join(PATHS[:4])} or the like; say which holds the paths with "
            f"path_column= (dataset.path_column=), it has {', '.join(map(shown, rows.columns))}"
        )
    if not len(rows.columns[paths]):
        raise ValueError(f"{rows.title} has no row below the names of its columns")
    names = [_path(value, index, rows) for index, value in enumerate(rows.columns[paths])]
    parts = _parts(rows, splits, len(names))
    if not parts["train"]:
        raise ValueError(f"{rows.title} has no row of split train in column {shown(str(splits))}")
    used = sorted(parts["train"] + parts["val"])
    check_files(root, [names[index] for index in used], lambda index: rows.where(used[index]))
    cells = None if labels is None else rows.columns[labels]

    def labels_of(split: str) -> Labels:
        of = parts[split]
        values = None if cells is None else [cells[index] for index in of]
        return Labels(values, where=lambda index: rows.where(of[index]))

    classes, numbers = number_labels({split: labels_of(split) for split in ("train", "val")})

    def images(split: str) -> FolderDataset:
        return FolderDataset(root, [names[index] for index in parts[split]], numbers[split], reading=reading)

    notes = f"layout: {rows.title}, paths in column {shown(paths)}"
    if classes is not None:
        notes += f", {len(classes):,} classes in column {shown(str(labels))}"
    if splits is not None:
        notes += f", splits in column {shown(splits)}"
    repeated = len(used) - len({os.path.normpath(os.path.join(root, names[index])) for index in used})
    if repeated:
        notes += f"; {repeated:,} rows name a file that another row names too"
    left_out = [f"left out: {len(parts['test']):,} rows of test, never read"] if parts["test"] else []
    val = images("val") if parts["val"] else None
    return Splits(images("train"), val, classes, val_fraction, notes=(notes, *left_out))


def check_files(root: str, names: Sequence[str], where: Where) -> None:
    """Refuse names that lead to no file, before a training is started on the others.

    Raises:
        ValueError: it says how many there are, and names the first.
    """
    missing = [index for index, name in enumerate(names) if not os.path.isfile(os.path.join(root, name))]
    if missing:
        first = names[missing[0]]
        kind = "is a folder" if os.path.isdir(os.path.join(root, first)) else "does not exist"
        counted = "" if os.path.isabs(first) else f"; relative paths count from '{shown(root or '.')}' (dataset.root=)"
        raise ValueError(
            f"{len(missing):,} of {len(names):,} image files are missing: '{shown(first)}' ({where(missing[0])}) "
            f"{kind}{counted}"
        )


def _column(rows: Rows, argument: str, asked: str | None, usual: Sequence[str]) -> str | None:
    if asked is not None:
        if asked not in rows.columns:
            there = ", ".join(map(shown, rows.columns))
            raise ValueError(f"{argument}={shown(str(asked))} is no column of {rows.title}; it has {there}")
        return asked
    lower = {str(name).lower(): name for name in reversed(list(rows.columns))}
    return next((lower[name] for name in usual if name in lower), None)


def _path(value: Any, index: int, rows: Rows) -> str:
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip():
        raise ValueError(f"{rows.where(index)} holds no path but {shown(repr(value)[:60])}")
    return os.path.expanduser(os.fspath(value))


def _parts(rows: Rows, column: str | None, number: int) -> dict[str, list[int]]:
    """Split -> its rows."""
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    if column is None:
        return parts | {"train": list(range(number))}
    for index, value in enumerate(rows.columns[column]):
        split = split_named(str(value))
        if split is None:
            raise ValueError(
                f"{rows.where(index)} has the split {shown(repr(value)[:60])}; a split is train, val or test "
                "(split_column= names another column)"
            )
        parts[split].append(index)
    return parts
