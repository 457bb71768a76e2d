from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from commandline import MACHINE

from esvit_pl.checkpoints import load_backbone
from esvit_pl.datasets import folder
from esvit_pl.evaluation import load_features


@pytest.fixture(scope="module")
def embedded(pretrained, commands, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "f.npz"
    outcome = embed(commands, pretrained, pictures, f"out={out}", "regions=true")
    assert outcome.code == 0, outcome.err
    return out


def embed(commands, pretrained, root, *words):
    return run("embed", commands, pretrained, root, *words)


def near(commands, pretrained, root, *words):
    return run("neighbours", commands, pretrained, root, *words)


def run(command, commands, pretrained, root, *words):
    data = ["dataset=folder", f"dataset.root={root}", f"ckpt_path={pretrained.folder}"]
    return commands.run(command, *data, *MACHINE, *words)


def read(table):
    with table.open() as file:
        return list(csv.DictReader(file))


def test_the_nearest_images_are_those_of_all_cosines(pretrained, commands, pictures, embedded, tmp_path):
    images = folder(pictures).train
    query, table, out = f"{pictures}/{images.name(5)}", tmp_path / "near.csv", tmp_path / "near.png"
    outcome = near(
        commands, pretrained, pictures, f"embedded={embedded}", f"query={query}", f"table={table}", "k=4", f"out={out}"
    )
    assert outcome.code == 0, outcome.err
    features = load_features(embedded).features["pooled"]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit[5]
    order = np.argsort(-cosines, kind="stable")[:4]
    rows = read(table)
    assert [row["name"] for row in rows] == [images.name(int(index)) for index in order]
    assert rows[0]["name"] == images.name(5)  # itself
    assert [float(row["cosine"]) for row in rows] == pytest.approx(cosines[order].tolist(), abs=1e-4)
    assert [row["class"] for row in rows] == [name.partition("/")[0] for name in (row["name"] for row in rows)]
    assert f"    1  1.000  {images.name(5)}  " in outcome.out
    assert out.read_bytes().startswith(b"\x89PNG")


def test_every_image_of_a_folder_is_a_query(pretrained, commands, pictures, embedded, tmp_path):
    table = tmp_path / "near.csv"
    words = [
        f"embedded={embedded}",
        f"query={pictures}/red",
        f"table={table}",
        "k=1",
        "most=3",
        f"out={tmp_path}/n.png",
    ]
    outcome = near(commands, pretrained, pictures, *words)
    assert outcome.code == 0, outcome.err
    rows = read(table)
    assert len(rows) == 12
    assert all(row["query"].endswith(row["name"]) for row in rows)
    assert "the first 3 of 12 queries" in outcome.out


def test_the_nearest_region_of_each_image(pretrained, commands, pictures, embedded, tmp_path):
    images, table = folder(pictures).train, tmp_path / "near.csv"
    query = f"{pictures}/{images.name(7)}"
    words = [f"embedded={embedded}", f"query={query}", "regions=true", "place=[1,1]", f"table={table}", "k=36"]
    outcome = near(commands, pretrained, pictures, *words, f"out={tmp_path}/n.png")
    assert outcome.code == 0, outcome.err
    rows = read(table)
    assert len({row["name"] for row in rows}) == len(rows) == 36  # one region of each
    maps = torch.nn.functional.normalize(torch.from_numpy(load_features(embedded).features["regions"]), dim=-1)
    backbone = load_backbone(pretrained.folder)
    seen = backbone(backbone.transform.whole(images[7][0], multiple=4)[None])
    asked = torch.nn.functional.normalize(seen.regions[0, 0], dim=0)
    for row in rows:
        number = next(index for index in range(36) if images.name(index) == row["name"])
        best = (maps[number] @ asked).max()
        assert float(row["cosine"]) == pytest.approx(float(best), abs=1e-3)
        cell = maps[number, int(row["region_row"]), int(row["region_column"])]
        assert float(cell @ asked) == pytest.approx(float(best), abs=1e-3)


def test_a_parquet_has_the_same_neighbours(pretrained, commands, pictures, embedded, tmp_path):
    pytest.importorskip("pyarrow")
    parquet = tmp_path / "f.parquet"
    assert embed(commands, pretrained, pictures, f"out={parquet}", "regions=true").code == 0
    words = [f"query={pictures}/{folder(pictures).train.name(5)}", "k=6", f"out={tmp_path}/n.png"]
    for how in ([], ["regions=true"]):
        tables = []
        for file in (embedded, parquet):
            tables.append(tmp_path / f"{file.suffix}{len(how)}.csv")
            outcome = near(commands, pretrained, pictures, f"embedded={file}", f"table={tables[-1]}", *words, *how)
            assert outcome.code == 0, outcome.err
        assert read(tables[0]) == read(tables[1])
    refused = near(commands, pretrained, pictures, f"embedded={parquet}", words[0], "network=student")
    assert "f.parquet was made with weights " in refused.err


def test_a_csv_is_refused_before_anything_is_loaded(pretrained, commands, pictures, tmp_path):
    (tmp_path / "f.csv").write_text("name,pooled_0")
    refused = near(commands, pretrained, pictures, f"embedded={tmp_path}/f.csv", f"query={pictures}/red")
    assert "f.csv does not say of which weights and images its features are; .npz and .parquet do" in refused.err


def test_what_does_not_belong_together_is_named(pretrained, commands, pictures, unlabelled, embedded, tmp_path):
    query = f"query={pictures}/red"
    other = near(commands, pretrained, unlabelled, f"embedded={embedded}", query)
    assert "holds features of other images than dataset= names" in other.err
    words = [f"embedded={embedded}", query, "network=student"]
    assert "was made with weights " in near(commands, pretrained, pictures, *words).err
    plain = tmp_path / "plain.npz"
    assert embed(commands, pretrained, pictures, f"out={plain}").code == 0
    refused = near(commands, pretrained, pictures, f"embedded={plain}", query, "regions=true")
    assert "holds pooled; make it with esvit-embed regions=true" in refused.err
    refused = near(commands, pretrained, pictures, f"embedded={embedded}", query, "place=[1,1]")
    assert "place=[1, 1] is a place whose region is looked for; set regions=true" in refused.err
    refused = near(commands, pretrained, pictures, f"embedded={embedded}", f"query={tmp_path}/none.jpg")
    assert "there is no such image or folder" in refused.err
