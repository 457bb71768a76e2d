from __future__ import annotations

import csv

import numpy as np
import pytest

from esvit_pl.evaluation import load_features
from esvit_pl.evaluation.stored import FeatureFolder, write_csv, write_npz, write_parquet

ABOUT = {"weights": "abc", "kinds": ["pooled"]}


def rows(*numbers):
    """Features of images: number i has (i, -i), and a map of one row and two columns."""
    pooled = np.array([[n, -n] for n in numbers], dtype=np.float32)
    return {"pooled": pooled, "regions": pooled[:, None, :, None].astype(np.float16)}


def read(paths):
    return {kind: np.load(path) for kind, path in paths.items()}


def test_rows_of_several_processes_and_starts_end_in_order(tmp_path):
    first = FeatureFolder(tmp_path / "f", ABOUT, number=5)
    assert first.missing().tolist() == [0, 1, 2, 3, 4]
    one, two = first.writer(), first.writer()
    one.add([4, 0], rows(4, 0))
    two.add([3], rows(3))
    one.add([4], rows(4))  # again, as a loader may give it
    again = FeatureFolder(tmp_path / "f", ABOUT, number=5)
    assert again.missing().tolist() == [1, 2]
    with pytest.raises(ValueError, match="2 of 5 images have no features yet, the first is 1"):
        again.merged()
    again.writer().add([1, 2], rows(1, 2))
    found = read(again.merged())
    assert found["pooled"].dtype == np.float32
    assert found["regions"].shape == (5, 1, 2, 1)
    for kind, expected in rows(0, 1, 2, 3, 4).items():
        assert np.array_equal(found[kind], expected)
    again.remove()
    assert not (tmp_path / "f").exists()


def test_some_images_alone(tmp_path):
    folder = FeatureFolder(tmp_path / "f", ABOUT, number=4)
    folder.writer().add([3, 1, 0], rows(3, 1, 0))
    assert np.array_equal(read(folder.merged(np.array([0, 3])))["pooled"], rows(0, 3)["pooled"])


def test_a_row_that_was_being_written_does_not_count(tmp_path):
    folder = FeatureFolder(tmp_path / "f", ABOUT, number=3)
    folder.writer().add([0, 2], rows(0, 2))
    (part,) = (tmp_path / "f").glob("part_*")
    with (part / "pooled.bin").open("ab") as file:
        file.write(b"half")
    with (part / "numbers.bin").open("ab") as file:
        file.write(b"1")
    assert folder.missing().tolist() == [1]
    folder.writer().add([1], rows(1))
    assert np.array_equal(read(folder.merged())["pooled"], rows(0, 1, 2)["pooled"])


def test_a_process_that_wrote_nothing_is_no_obstacle(tmp_path):
    folder = FeatureFolder(tmp_path / "f", ABOUT, number=1)
    folder.writer()
    folder.writer().add([0], rows(0))
    assert np.array_equal(read(folder.merged())["pooled"], rows(0)["pooled"])


def test_features_of_something_else_are_refused_by_name(tmp_path):
    FeatureFolder(tmp_path / "f", ABOUT, number=3)
    FeatureFolder(tmp_path / "f", ABOUT, number=3)
    with pytest.raises(ValueError, match='begun with weights "abc", and now weights "def" came; remove it'):
        FeatureFolder(tmp_path / "f", {**ABOUT, "weights": "def"}, number=3)
    with pytest.raises(ValueError, match="begun with images 3, and now images 4 came"):
        FeatureFolder(tmp_path / "f", ABOUT, number=4)


def test_rows_of_another_shape_are_refused(tmp_path):
    writer = FeatureFolder(tmp_path / "f", ABOUT, number=3).writer()
    writer.add([0], rows(0))
    with pytest.raises(ValueError, match="were begun, and 1 of"):
        writer.add([1], {"pooled": np.zeros((1, 3), np.float32)})
    with pytest.raises(ValueError, match="were begun, and 2 of"):
        writer.add([1, 2], rows(1))


# -- one file

NAMES = ["a.jpg", "=HYPERLINK(1).jpg", "\udcff.jpg"]
LABELS = np.array([1, 0, 1])


@pytest.fixture
def features(tmp_path):
    folder = FeatureFolder(tmp_path / "f", ABOUT, number=3)
    folder.writer().add([0, 1, 2], rows(0, 1, 2))
    return folder.merged()


@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "no labels"])
def test_npz(tmp_path, features, labels):
    found = load_features(write_npz(tmp_path / "a" / "f.npz", NAMES, labels, features, ABOUT))
    assert found.names == NAMES
    assert found.labels is None if labels is None else np.array_equal(found.labels, labels)
    assert found.about == ABOUT
    assert list(found.features) == ["pooled", "regions"]
    for kind, expected in rows(0, 1, 2).items():
        assert np.array_equal(found.features[kind], expected)


def test_csv(tmp_path, features):
    path = write_csv(tmp_path / "f.csv", NAMES, LABELS, features)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        head, *lines = csv.reader(file)
    assert head == ["name", "label", "pooled_0", "pooled_1", "regions_0", "regions_1"]
    assert [line[0] for line in lines] == ["a.jpg", "'=HYPERLINK(1).jpg", "\udcff.jpg"]
    assert [[float(cell) for cell in line[1:]] for line in lines] == [
        [1, 0, 0, 0, 0],
        [0, 1, -1, 1, -1],
        [1, 2, -2, 2, -2],
    ]
    without = write_csv(tmp_path / "g.csv", NAMES, None, {"pooled": features["pooled"]})
    assert without.read_text(encoding="utf-8", errors="replace").splitlines()[0] == "name,pooled_0,pooled_1"


def test_parquet(tmp_path, features, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("esvit_pl.evaluation.stored.ROWS", 2)
    names = ["a.jpg", "b.jpg", "c.jpg"]
    table = parquet.read_table(write_parquet(tmp_path / "f.parquet", names, LABELS, features, ABOUT))
    assert table.column_names == ["name", "label", "pooled", "regions"]
    assert table["name"].to_pylist() == names
    assert table["label"].to_pylist() == LABELS.tolist()
    assert table["pooled"].to_pylist() == [[0, 0], [1, -1], [2, -2]]
    assert b'"shapes": {"pooled": [2], "regions": [1, 2, 1]}' in table.schema.metadata[b"esvit_pl"]


@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "no labels"])
@pytest.mark.parametrize("last", ["ç.jpg", "\udcff.jpg"], ids=["a text", "no UTF-8"])
def test_a_parquet_is_read_as_the_npz_is(tmp_path, features, monkeypatch, labels, last):
    pytest.importorskip("pyarrow")
    names = ["a.jpg", "b.jpg", last]
    npz = load_features(write_npz(tmp_path / "f.npz", names, labels, features, ABOUT))
    parquet = write_parquet(tmp_path / "f.parquet", names, labels, features, ABOUT)
    monkeypatch.setattr("esvit_pl.evaluation.stored.ROWS", 2)  # it is read in two blocks, though written in one
    for mapped in (False, True):
        found = load_features(parquet, mapped=mapped)
        assert (found.names, found.about, list(found.features)) == (npz.names, npz.about, list(npz.features))
        assert found.labels is None if labels is None else found.labels.tolist() == labels.tolist()
        for kind, rows in npz.features.items():
            assert (found.features[kind].dtype, isinstance(found.features[kind], np.memmap)) == (rows.dtype, mapped)
            assert np.array_equal(found.features[kind], rows)
    found.features["pooled"][0] = 7  # in memory alone
    assert np.array_equal(load_features(parquet).features["pooled"], npz.features["pooled"])


def test_other_formats_are_refused(tmp_path, features, monkeypatch):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    with pytest.raises(ValueError, match="does not say of which weights and images its features are; .npz and .parq"):
        load_features(write_csv(tmp_path / "f.csv", NAMES, LABELS, features))
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(ValueError, match="text.parquet is no .parquet file of esvit-embed"):
        load_features(tmp_path / "text.parquet")
    parquet.write_table(arrow.table({"name": ["a.jpg"]}), tmp_path / "theirs.parquet")
    with pytest.raises(ValueError, match="theirs.parquet is no .parquet file of esvit-embed"):
        load_features(tmp_path / "theirs.parquet")
    cut = write_parquet(tmp_path / "cut.parquet", ["a", "b", "c"], LABELS, features, ABOUT)
    short = parquet.read_table(cut).drop_columns(["pooled"])
    parquet.write_table(short, cut)
    with pytest.raises(ValueError, match="cut.parquet is no .parquet file of esvit-embed"):
        load_features(cut)
    monkeypatch.setattr("esvit_pl.evaluation.stored.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="cut.parquet needs pyarrow: pip install 'esvit_pl.parquet.'; .npz does not"):
        load_features(cut)


def test_files_of_somebody_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match="f.npz does not exist"):
        load_features(tmp_path / "f.npz")
    np.savez(tmp_path / "f.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="is no .npz file of esvit-embed"):
        load_features(tmp_path / "f.npz")
    (tmp_path / "g.npz").write_text("text")
    with pytest.raises(ValueError, match="is no .npz file of esvit-embed"):
        load_features(tmp_path / "g.npz")


def test_mapped_features_are_the_same_and_stay_on_the_disk(tmp_path):
    rows = np.arange(12, dtype=np.float16).reshape(3, 2, 2)
    np.save(tmp_path / "rows.npy", rows)
    path = write_npz(tmp_path / "f.npz", ["a", "b", "ç"], np.array([2, 0, 1]), {"regions": tmp_path / "rows.npy"}, {})
    names, labels, features, _ = load_features(path, mapped=True)
    assert names == ["a", "b", "ç"]
    assert labels.tolist() == [2, 0, 1]
    assert isinstance(features["regions"], np.memmap)
    assert features["regions"].dtype == np.float16
    assert features["regions"].tolist() == rows.tolist()
    features["regions"][0] = 7  # in memory alone
    assert load_features(path).features["regions"].tolist() == rows.tolist()
    np.savez_compressed(path, names=np.array(["a"]), about=np.array("{}"), regions=rows)
    with pytest.raises(ValueError, match="is no .npz file of esvit-embed .regions is compressed"):
        load_features(path, mapped=True)
