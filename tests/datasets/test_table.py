"""Images that a table lists: paths from the right folder, labels, splits, and errors that name the line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from esvit_pl.datasets import Splits, table


@pytest.fixture
def photos(tmp_path) -> Path:
    for number, name in enumerate(("a.png", "b.png", "deep/c.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (number, 2, 3)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def write(folder: Path, text: str, name: str = "x.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def names(splits: Splits) -> list[str]:
    return [splits.train.name(index) for index in range(len(splits.train))]


def test_paths_labels_and_splits(photos):
    splits = table(write(photos, "path,label,split\nb.png,dog,train\na.png,cat,training\ndeep/c.png,cat,valid\n"))
    assert names(splits) == ["b.png", "a.png"]
    assert (splits.classes, splits.train.labels, splits.query.labels) == (["cat", "dog"], [1, 0], [0])
    assert [int(splits.train[index][0][0, 0, 0]) for index in (0, 1)] == [1, 0]
    assert splits.notes == (
        f"layout: '{photos}/x.csv', paths in column path, 2 classes in column label, splits in column split",
    )


def test_relative_paths_count_from_the_folder_of_the_table_or_from_root(photos, tmp_path, monkeypatch):
    file = write(tmp_path, "path\nphotos/a.png\n")
    assert len(table(file).train) == 1
    file = write(tmp_path, f"path\na.png\n{photos}/b.png\n")
    assert len(table(file, root=photos).train) == 2
    monkeypatch.chdir(tmp_path)
    assert len(table("x.csv", root="photos").train) == 2
    with pytest.raises(
        ValueError, match=r"1 of 2 .* missing: 'a.png' \(line 2 of 'x.csv'\) does not exist; relative .* '.'"
    ):
        table("x.csv")


def test_columns_by_name(photos):
    file = write(photos, "id,where,what,fold\n1,a.png,3,dev\n2,b.png,12,train\n3,deep/c.png,3,train\n")
    splits = table(file, path_column="where", label_column="what", split_column="fold")
    assert (splits.classes, splits.train.labels, splits.query.labels) == (["3", "12"], [1, 0], [0])
    with pytest.raises(
        ValueError, match=r"has no column called path, file, .*; it has id, where, what, fold|dataset.path_column="
    ):
        table(file)
    with pytest.raises(ValueError, match=r"label_column=kind is no column of '.*x.csv'; it has id, where, what, fold"):
        table(file, path_column="where", label_column="kind")


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("x.csv", "File;Class\na.png;'x'\nb.png;y\n", "utf-8"),  # as spreadsheets of many countries write it
        ("x.csv", "file,class\r\na.png,x\r\n\r\nb.png,y", "utf-8-sig"),
        ("x.tsv", "file\tclass\na.png\tx\nb.png\ty\n", "utf-8"),
        ("x.CSV", 'file,class\n"a.png","x, the ""first"""\nb.png,y\n', "utf-8"),
    ],
)
def test_kinds_of_text(photos, name, text, encoding):
    splits = table(write(photos, text, name, encoding))
    assert names(splits) == ["a.png", "b.png"]
    assert splits.train.labels == [0, 1]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("10.0", "9"), ["9", "10"]),
        (("1", "1.0"), ["1"]),
        (("007", "7"), ["007", "7"]),
        (("NaN", "nan"), None),
        (("NA", ""), None),
        (("None", "x"), ["None", "x"]),
    ],
)
def test_labels_as_tables_write_them(photos, labels, classes):
    splits = table(write(photos, "path,label,,\na.png,{},,\nb.png,{},,\n".format(*labels)))
    assert splits.classes == classes


def test_a_file_that_is_listed_twice_is_said(photos):
    splits = table(write(photos, "path,split\na.png,train\n./a.png,val\n"))
    assert "; 1 rows name a file that another row names too" in splits.describe()


def test_rows_of_test_are_never_read(photos):
    splits = table(write(photos, "path,split\na.png,train\ngone.png,test\n"))
    assert names(splits) == ["a.png"]
    assert "left out: 1 rows of test, never read" in splits.describe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,x\nb.png,\n", r"1 of 2 labels are missing; the first is that of line 3 of '.*x.csv'"),
        ("path,label\na.png,x\nb.png,nan\n", "1 of 2 labels are missing; the first is that of line 3"),
        ("path,label\na.png,1\nb.png,0.5\n", r"the label of line 3 of '.*' is 0.5 \(float\)"),
        ("path,label\na.png,x\n,y\n", "line 3 of '.*x.csv' holds no path but ''"),
        (
            "path,split\na.png,train\nb.png,later\n",
            r"line 3 of '.*' has the split 'later'; a split is train, val or test",
        ),
        ("path,split\na.png,val\n", "has no row of split train in column split"),
        ("path,label\na.png,x,y\n", "line 2 of '.*' has 3 cells, and the first line 2; put cells"),
        ("path,label\n", "has no row below the names of its columns"),
        ("", "has no column called path"),
        ("a.png,cat\nb.png,dog\n", r"the first line of '.*' names an image \(a.png,cat\); it must name the columns"),
        ("path,path\na.png,b.png\n", "two columns of '.*' have the same name: path, path"),
        ("path\ndeep\n", r"missing: 'deep' \(line 2 of '.*'\) is a folder"),
        ("path,label,split\na.png,x,train\nb.png,y,val\n", "val has 1 classes that the training images do not have: y"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(photos, text, message):
    with pytest.raises(ValueError, match=message):
        table(write(photos, text))


def test_files_that_are_no_table(photos, monkeypatch):
    with pytest.raises(ValueError, match="the table 'gone.csv' does not exist"):
        table("gone.csv")
    with pytest.raises(ValueError, match=r"file is empty; give the table of your images \(dataset.file=FILE\)"):
        table("")
    with pytest.raises(ValueError, match=r"is no table that is read here; give a file of .csv, .tsv, .parquet"):
        table(write(photos, "path\n", "x.xlsx"))
    with pytest.raises(ValueError, match="is not written in UTF-8"):
        table(write(photos, "path\nü.png\n", encoding="latin-1"))
    for library in ("pyarrow", "pyarrow.parquet", "pandas"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ValueError, match="is a Parquet file, which pyarrow reads; pip install pyarrow, or save it as CSV"
    ):
        table(write(photos, "", "x.parquet"))


def test_parquet(photos, monkeypatch):
    class Table:
        def to_pydict(self):
            return {"path": ["a.png", "b.png"], "label": [1, 0]}

    stand_in = ModuleType("pyarrow.parquet")
    stand_in.read_table = lambda path: Table()
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", stand_in)
    assert table(write(photos, "", "x.parquet")).train.labels == [1, 0]
