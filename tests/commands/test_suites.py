"""esvit-evaluate suite=: logistic regression on the data sets of a transfer suite."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import transfer_files
from commandline import MACHINE
from PIL import Image

from esvit_pl.datasets.catalogue import CATALOGUE, SUITES, Suite

MAKERS = {"cifar10": "cifar10", "dtd": "dtd", "pets": "pets", "flowers102": "flowers"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The four data sets of suite=quick, two classes each."""
    root = tmp_path_factory.mktemp("transfer")
    for maker in MAKERS.values():
        getattr(transfer_files, maker)(root, each=6)
    return root


@pytest.fixture(autouse=True)
def _no_checksums(monkeypatch):
    for module in ("cifar", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: True)


def suite(commands, pretrained, out, root, *words):
    words = [f"ckpt_path={{ours:{pretrained.folder}}}", f"root={root}", "check_counts=false", *words]
    return commands.run("evaluate", *MACHINE, f"out={out}", "suite=quick", *words)


def test_quick_on_four_miniatures(pretrained, commands, quick, tmp_path):
    words = (f"supervised={{labels:{pretrained.folder}}}", "evaluation.logistic.C=1.0")
    outcome = suite(commands, pretrained, tmp_path / "t", quick, *words)
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "t" / "results.json").read_text())
    assert results["suite"] == "quick"
    assert list(results["rows"]) == ["ours", "labels"]
    ours = results["rows"]["ours"]
    metrics = {"CIFAR-10": "top1", "DTD": "top1", "Pets": "per_class", "Flowers-102": "per_class"}
    assert {title: next(iter(numbers)) for title, numbers in ours.items()} == {
        title: f"logistic/{metric}" for title, metric in metrics.items()
    }
    values = [ours[title][f"logistic/{metric}"] for title, metric in metrics.items()]
    assert min(values) > 0.5  # the colours of two classes
    assert results["means"]["ours"] == pytest.approx(sum(values) / 4)
    assert results["wins"] == {"ours": 0, "labels": None}  # the same weights win nothing
    assert results["missing"] == {}
    head, *lines = (tmp_path / "t" / "table.md").read_text().splitlines()
    assert head == "|  | metric | ours | labels |"
    assert lines[-1].startswith(
        "- the paper, on its 18 data sets, Swin-T: mean 77.29 supervised, 80.66 EsViT, 16 wins;"
    )
    assert "mean of 4 of 4" in outcome.out
    assert "wins over labels" in outcome.out
    with (tmp_path / "t" / "table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * (3 + 3 + 2 + 2)  # top1, top5, C; per_class, C


def test_what_lies_at_the_border_of_a_wide_image_is_seen_where_it_counts(pretrained, commands, tmp_path, monkeypatch):
    """KITTI's images here differ only at their left end, which the central square does not reach."""
    transfer_files.kitti(tmp_path / "data")
    for number in range(10):
        pixels = np.full((16, 64, 3), 128, dtype=np.uint8)
        pixels[:, :16, :] = ([255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255])[number % 4]
        Image.fromarray(pixels).save(tmp_path / "data/Kitti/raw/training/image_2" / f"{number:06d}.png")
    monkeypatch.setitem(SUITES, "quick", Suite(("kitti",)))
    outcome = suite(commands, pretrained, tmp_path / "t", tmp_path / "data", "evaluation.logistic.C=1e6")
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "t" / "results.json").read_text())
    assert results["rows"]["ours"]["KITTI distance"]["logistic/top1"] == 1.0


def test_what_is_missing_is_a_row_and_what_was_measured_is_not_measured_again(
    pretrained, commands, quick, tmp_path, monkeypatch
):
    root = tmp_path / "data"
    root.mkdir()
    (root / "dtd").symlink_to(quick / "dtd")
    words = ("evaluation.logistic.C=1.0", f"cache={tmp_path}/features")
    first = suite(commands, pretrained, tmp_path / "t", root, *words)
    assert first.code == 0, first.err
    text = (tmp_path / "t" / "table.md").read_text()
    assert "| CIFAR-10 | accuracy | missing |" in text
    assert "| mean of 1 of 4 |" in text
    assert f"missing: Pets; get it: torchvision.datasets.OxfordIIITPet('{root}', download=True)" in first.out
    assert len(list((tmp_path / "features").iterdir())) == 2

    (root / "oxford-iiit-pet").symlink_to(quick / "oxford-iiit-pet")
    asked = []
    from esvit_pl.evaluation import Logistic

    run = Logistic.run
    monkeypatch.setattr(Logistic, "run", lambda self, *args: asked.append(args) or run(self, *args))
    again = suite(commands, pretrained, tmp_path / "t", root, *words)
    assert again.code == 0, again.err
    assert len(asked) == 1  # the pets alone
    assert "ours: measured before: logistic" in again.out
    before, after = (json.loads(line)["numbers"] for line in _measured(tmp_path / "t", "dtd", "pets"))
    assert {*before, *after} == {"logistic/top1", "logistic/top5", "logistic/per_class", "logistic/C"}


def _measured(out, *names):
    return [(out / "measured" / name / "ours" / "logistic.json").read_text() for name in names]


def test_c_is_searched_on_val_and_a_border_is_told(pretrained, commands, tmp_path, monkeypatch):
    transfer_files.dtd(tmp_path / "data", each=3)
    monkeypatch.setattr("esvit_pl.evaluation.logistic.best_power", lambda score: 6 * score(6.0) ** 0)
    outcome = suite(commands, pretrained, tmp_path / "t", tmp_path / "data")
    assert outcome.code == 0, outcome.err
    assert "logistic regression: C=1e+06, the border of the search, was chosen on 6 images held out" in outcome.out
    assert "DTD, ours: C=1e+06 lies at the border of the search" in outcome.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["suite=quik", "root=ROOT"], "suite=quik does not exist; there are quick, clip18, elevater20"),
        (["suite=quick"], "suite=quick needs root=FOLDER"),
        (["suite=quick", "root=EMPTY"], "none of the data sets of suite=quick lies in "),
        (["suite=quick", "root=ROOT", "dataset=cifar10"], "brings its own data sets; leave dataset= and groups= out"),
        (["suite=quick", "root=ROOT", "evaluation.probes=[linear]"], "is measured with logistic regression"),
        (["suite=quick", "root=ROOT"], "CIFAR-10 must have 10 classes, got 2"),
        (
            ["suite=quick", "root=ROOT", "check_counts=false", "supervised={ours:RUN}"],
            "supervised must be one backbone",
        ),
    ],
)
def test_what_it_refuses(words, said, pretrained, commands, quick, tmp_path):
    places = {"ROOT": quick, "EMPTY": tmp_path, "RUN": pretrained.folder}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    checkpoint = f"ckpt_path={{ours:{pretrained.folder}}}"
    outcome = commands.run("evaluate", *MACHINE, f"out={tmp_path}/t", checkpoint, *words)
    assert outcome.code == 1
    assert said in outcome.err
    assert not (tmp_path / "t").exists()


def test_clip18_with_several_classes_in_an_image_tells_its_doubt(pretrained, commands, tmp_path, monkeypatch):
    transfer_files.voc2007(tmp_path / "data")
    small = CATALOGUE["voc2007"]._replace(images={"train": 2, "val": 2, "test": 1})  # counts that are right
    monkeypatch.setitem(CATALOGUE, "voc2007", small)
    monkeypatch.setattr("esvit_pl.datasets.catalogue._classes_in", lambda images: 20)
    words = [f"ckpt_path={{ours:{pretrained.folder}}}", f"root={tmp_path}/data", "suite=clip18"]
    words += ["evaluation.logistic.C=1.0"]
    outcome = commands.run("evaluate", *MACHINE, f"out={tmp_path}/t", *words)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "t" / "results.json").read_text())["rows"]["ours"]
    assert found == {"VOC2007": {"logistic/map11": 1.0, "logistic/C": 1.0}}  # of one image one class is there
    assert "its list is in an appendix that could not be checked" in outcome.out
    assert "mean of 1 of 18" in outcome.out
    assert outcome.out.count("missing: ") == 17
