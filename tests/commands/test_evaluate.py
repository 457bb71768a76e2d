"""esvit-evaluate: all probes of several checkpoints in one table."""

from __future__ import annotations

import csv
import json

import pytest
from commandline import MACHINE

NAMES = ["knn", "logistic", "effective_rank"]
PROBES = f"evaluation.probes=[{','.join(NAMES)}]"


def evaluate(commands, out, *words):
    return commands.run("evaluate", *MACHINE, f"out={out}", *words)


def both(pretrained):
    return f"ckpt_path={{teacher:{pretrained.folder},again:{pretrained.last}}}"


def test_a_table_of_two_checkpoints(pretrained, commands, tmp_path):
    outcome = evaluate(commands, tmp_path / "t", both(pretrained), PROBES)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    results = json.loads((tmp_path / "t" / "results.json").read_text())
    rows = ["raw pixels", "grey-level histogram", "untrained backbone", "teacher", "again"]
    assert list(results["rows"]) == rows
    assert results["rows"]["teacher"]["knn/top1"] == pretrained.results["knn"]["pretrained"]
    for row, baseline in zip(rows, ("raw_pixels", "histogram", "untrained"), strict=False):
        assert results["rows"][row]["knn/top1"] == pretrained.results["knn"][baseline]
        assert "logistic/top1" not in results["rows"][row]  # which learns; evaluation.baselines=true takes it, too
    assert results["rows"]["teacher"] == results["rows"]["again"]  # the same weights
    same = {each["metric"]: each for each in results["differences"] if each["other"] == "teacher"}
    assert {"knn/top1", "knn/top5", "logistic/top1"} == same.keys()
    assert not any(each["real"] or each["less"] for each in same.values())
    head, *lines = (tmp_path / "t" / "table.md").read_text().splitlines()
    assert head == "|  | k-NN | logistic regression | effective rank |"
    assert len(lines) == 1 + len(rows)
    with (tmp_path / "t" / "table.csv").open() as file:
        assert {row["metric"] for row in csv.DictReader(file)} >= {"knn/top1", "logistic/C", "effective_rank"}
    assert "images (those of the checkpoint's training): dataset=folder" in outcome.out
    assert "again less teacher +0.0 (+0.0 to +0.0), within what chance explains" in outcome.out


def test_what_was_stopped_goes_on_after_the_last_probe(pretrained, commands, tmp_path, monkeypatch):
    from esvit_pl.evaluation import Logistic

    def breaks(self, encoder, data):
        raise ValueError("the disk is full")

    words = [f"ckpt_path={pretrained.folder}", PROBES, "evaluation.baselines=false"]
    with monkeypatch.context() as patch:
        patch.setattr(Logistic, "run", breaks)
        assert evaluate(commands, tmp_path / "t", *words).code != 0
    assert [path.name for path in (tmp_path / "t").rglob("*.json")] == ["knn.json"]

    asked = []
    monkeypatch.setattr("esvit_pl.evaluation.knn.KNN.run", lambda *args: asked.append(args))
    outcome = evaluate(commands, tmp_path / "t", *words)
    assert outcome.code == 0, outcome.err
    assert "measured before: knn" in outcome.out
    assert asked == []
    results = json.loads((tmp_path / "t" / "results.json").read_text())
    assert next(iter(results["rows"].values()))["knn/top1"] == pretrained.results["knn"]["pretrained"]


def test_answers_of_other_settings_are_refused_by_name_or_replaced(pretrained, commands, tmp_path):
    words = [f"ckpt_path={pretrained.folder}", "evaluation.baselines=false"]
    assert evaluate(commands, tmp_path / "t", *words).code == 0
    other = evaluate(commands, tmp_path / "t", *words, "evaluation.knn.k=3")
    assert other.code == 1
    assert "knn.json was measured with settings" in other.err
    assert '"k": 3' in other.err
    assert "out= names another folder" in other.err
    assert evaluate(commands, tmp_path / "t", *words, "evaluation.knn.k=3", "overwrite=true").code == 0
    student = evaluate(commands, tmp_path / "t", *words, "network=student")
    assert "knn.json was measured with weights" in student.err


def test_images_of_one_group_are_drawn_together(pretrained, commands, tmp_path):
    words = [f"ckpt_path={pretrained.folder}", "evaluation.probes=[logistic]", "evaluation.baselines=false"]
    assert evaluate(commands, tmp_path / "t", *words, 'groups="(.*)/"').code == 0
    wrong = evaluate(commands, tmp_path / "t", *words, 'groups="x+/"')
    assert "groups=x+/ does not match the name" in wrong.err


def test_without_labels(pretrained, commands, unlabelled, tmp_path):
    outcome = evaluate(
        commands, tmp_path / "t", f"ckpt_path={pretrained.folder}", "dataset=folder", f"dataset.root={unlabelled}"
    )
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "t" / "results.json").read_text())["rows"]
    assert list(rows) == ["untrained backbone", pretrained.folder.name]
    assert list(rows[pretrained.folder.name]) == ["effective_rank", "rankme", "region_diversity"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "esvit-evaluate needs ckpt_path="),
        (["ckpt_path=nowhere.ckpt"], "there is no such file"),
        (
            ["ckpt_path=RUN", "evaluation.probes=[knm]"],
            "evaluation.probes holds knm; there are effective_rank, few_shot",
        ),
        (["ckpt_path=RUN", "experiment=embedded"], "experiment=embedded holds the settings of a training"),
        (["ckpt_path=RUN", "groups=3"], "groups"),
    ],
)
def test_what_it_refuses(pretrained, commands, tmp_path, words, said):
    outcome = evaluate(commands, tmp_path / "t", *(word.replace("RUN", str(pretrained.folder)) for word in words))
    assert outcome.code == 1
    assert said in outcome.err
    assert not (tmp_path / "t").exists()


def test_features_are_computed_once(pretrained, commands, tmp_path, monkeypatch):
    words = [f"ckpt_path={pretrained.folder}", "evaluation.baselines=false", f"cache={tmp_path}/features"]
    first = evaluate(commands, tmp_path / "a", *words, "evaluation.probes=[knn,logistic]")
    assert first.code == 0, first.err
    assert len(list((tmp_path / "features").iterdir())) == 2  # bank and query

    def breaks(*args, **kwargs):
        raise AssertionError("the backbone was asked again")

    monkeypatch.setattr("esvit_pl.backbones.swin.Swin.forward", breaks)
    again = evaluate(commands, tmp_path / "b", *words, "evaluation.probes=[knn,logistic]")
    assert again.code == 0, again.err
    assert (tmp_path / "a" / "table.csv").read_text() == (tmp_path / "b" / "table.csv").read_text()


@pytest.mark.slow
def test_two_processes_give_the_table_of_one_with_features_kept_by_one(pretrained, commands, tmp_path):
    words = [
        *MACHINE,
        f"ckpt_path={pretrained.folder}",
        "evaluation.baselines=false",
        "cache=features",
        'groups="(.*)/"',
    ]
    words += ["evaluation.probes=[knn,logistic,few_shot]", "evaluation.few_shot.n=1", "trainer=ddp_cpu"]
    rows = []
    for devices in (1, 2):
        done = commands.in_a_process(
            "evaluate", *words, f"trainer.devices={devices}", f"out={devices}", folder=tmp_path
        )
        assert done.returncode == 0, done.stderr
        rows.append(json.loads((tmp_path / str(devices) / "results.json").read_text())["rows"])
    (name,) = rows[0]
    assert rows[1][name] == pytest.approx(rows[0][name])
    assert len(list((tmp_path / "features").iterdir())) == 2 + 4
