"""esvit-knn: the same number as the pretraining run's own, of the network that is asked for."""

from __future__ import annotations

import re

import pytest
import torch
from commandline import MACHINE
from omegaconf import OmegaConf

from esvit_pl.commands.evaluation import report


def test_it_says_what_the_pretraining_run_said(pretrained, commands, pictures):
    outcome = commands.evaluate("knn", pretrained.last, pictures)
    assert outcome.code == 0, outcome.err
    assert outcome.results["knn"]["pretrained"] == pretrained.results["knn"]["pretrained"]
    assert outcome.results["knn"] == pretrained.results["knn"]  # the untrained backbone's weights, too, are the same
    assert outcome.results["metrics"] == {name: pretrained.metric(name)[-1] for name in ("knn/top1", "knn/top5")}
    assert outcome.results["status"] == "finished"
    assert f"knn/top1  {100 * outcome.results['metrics']['knn/top1']:5.1f}%" in outcome.out
    assert outcome.err == ""
    assert sorted(path.name for path in outcome.folder.iterdir()) == [
        ".hydra",
        "config.yaml",
        "environment.json",
        "knn.log",
        "results.json",
    ]


def test_images_and_their_preparation_are_those_of_the_training(pretrained, commands):
    """With nothing but the checkpoint: the run's own number, where 256 and 224 px would give another."""
    outcome = commands.run("knn", f"ckpt_path={pretrained.last}", *MACHINE)
    assert outcome.code == 0, outcome.err
    assert outcome.results["knn"]["pretrained"] == pretrained.results["knn"]["pretrained"]
    assert "images (those of the checkpoint's training): dataset=folder dataset.root=" in outcome.out
    mean, std = "[0.5,0.5,0.5]", "[0.157,0.157,0.157]"
    assert f"preparation (the checkpoint's): size 16, crop 16, mean {mean}, std {std}\n" in outcome.out
    used = OmegaConf.load(outcome.folder / "config.yaml").augment
    assert (used.eval_resize, used.eval_crop, list(used.std)) == (16, 16, [0.157, 0.157, 0.157])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["augment.eval_resize=20"], "size 20, crop 16, "),
        (["augment=multi_crop"], "size 256, crop 224, "),
        (["augment=embedded", "augment.eval_crop=16"], "size 32, crop 16, "),
        (["augment.normalize=view"], "size 16, crop 16, each crop standardised by its own mean and std"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_preparation_that_is_typed_wins_and_is_said(pretrained, commands, pictures, words, said):
    outcome = commands.evaluate("knn", pretrained.last, pictures, *words)
    assert outcome.code == 0, outcome.err
    assert f"preparation: {said}" in outcome.out
    differences = outcome.out.partition("differs from the checkpoint's: ")[2].partition("\n")[0].split(", ")
    typed = {
        "augment.eval_resize=20": ["augment.eval_resize=20 instead of 16"],
        "augment=multi_crop": [
            "augment.eval_resize=256 instead of 16",
            "augment.eval_crop=224 instead of 16",
            "augment.mean=[0.485,0.456,0.406] instead of [0.5,0.5,0.5]",
            "augment.std=[0.229,0.224,0.225] instead of [0.157,0.157,0.157]",
        ],
        "augment=embedded": ["augment.eval_resize=32 instead of 16"],
        "augment.normalize=view": ["augment.normalize=view instead of dataset"],
    }
    assert differences == typed[words[0]]


def test_a_preparation_that_is_typed_and_the_same_is_no_difference(pretrained, commands, pictures):
    outcome = commands.evaluate("knn", pretrained.last, pictures, "augment.eval_crop=16")
    assert "preparation (the checkpoint's): size 16, crop 16" in outcome.out


def test_images_of_other_channels_than_the_backbone_takes_are_refused(pretrained, commands, pictures):
    outcome = commands.evaluate("knn", pretrained.last, pictures, "augment.mean=[0.5]", "augment.std=[0.2]")
    assert outcome.code == 1
    assert (
        "backbone.in_chans=3, and augment.mean and augment.std of length 1 make views of as many channels"
        in outcome.err
    )


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_an_experiment_is_of_a_training(commands, command):
    outcome = commands.run(command, "ckpt_path=last.ckpt", "experiment=swin_tiny_w7_view")
    assert outcome.code == 1
    assert outcome.err.startswith("experiment=swin_tiny_w7_view holds the settings of a training. esvit-")
    assert "takes the data settings of the checkpoint" in outcome.err


def test_several_k_and_the_student(pretrained, commands, pictures):
    outcome = commands.evaluate("knn", pretrained.last, pictures, "module.k=[20,3]", "network=student")
    assert outcome.code == 0, outcome.err
    assert set(outcome.results["metrics"]) == {"knn/top1", "knn/top5", "knn/k3/top1", "knn/k3/top5"}


def test_the_numbers_are_of_the_network_that_is_asked_for(pretrained, commands, pictures, tmp_path):
    """A checkpoint whose student is an empty network: all its features are equal, the teacher's are not."""
    checkpoint = torch.load(pretrained.last, weights_only=True)
    for name, value in checkpoint["state_dict"].items():
        if name.startswith("student.backbone.norm."):
            value.zero_()
    torch.save(checkpoint, tmp_path / "half.ckpt")
    teacher, student = (
        commands.evaluate("knn", tmp_path / "half.ckpt", pictures, "module.k=1", f"network={network}")
        for network in ("teacher", "student")
    )
    one = commands.evaluate("knn", pretrained.last, pictures, "module.k=1")
    assert teacher.results["metrics"] == one.results["metrics"] != student.results["metrics"]


def test_a_backbone_beside_the_checkpoint_is_compared(pretrained, commands, pictures):
    own = ["backbone.embed_dim=8", "backbone.num_heads=[1,2]", "backbone.window=4", "backbone.img_size=16"]
    equal = commands.evaluate("knn", pretrained.last, pictures, "backbone=swin_micro_32px", *own)
    assert equal.code == 0, equal.err
    other = commands.evaluate("knn", pretrained.last, pictures, "backbone=swin_micro_32px")
    assert other.code == 1
    assert "another backbone than backbone= asks for" in other.err
    assert "embed_dim: checkpoint 8, backbone= 48; img_size: checkpoint 16, backbone= 32" in other.err
    assert "Traceback" not in other.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ckpt_path=nowhere.ckpt"], "ckpt_path=nowhere.ckpt: there is no such file or folder"),
        (["module.k=0"], "k-NN needs k of 1 or more, got module.k=0"),
        (["network=pupil"], "holds no pupil; its networks are student, teacher"),
        (["optimized_metric=knn/top3"], "optimized_metric=knn/top3 was not measured; there are knn/top1, knn/top5"),
        (["augment.eval_crop=0"], "eval_crop must be a whole number of pixels"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_refused(pretrained, commands, pictures, words, said):
    outcome = commands.evaluate("knn", pretrained.last, pictures, *words)
    assert outcome.code == 1
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_a_file_that_is_no_checkpoint_is_refused(commands, pictures, tmp_path):
    (tmp_path / "broken.ckpt").write_text("words")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    broken = commands.evaluate("knn", tmp_path / "broken.ckpt", pictures)
    foreign = commands.evaluate("knn", tmp_path / "foreign.ckpt", pictures)
    assert (broken.code, foreign.code) == (1, 1)
    assert "broken.ckpt cannot be read as a checkpoint" in broken.err
    assert "foreign.ckpt is not a known kind of checkpoint" in foreign.err


def test_results_say_on_what_and_how_they_were_measured(pretrained, commands, pictures):
    about = commands.evaluate("knn", pretrained.last, pictures, "module.k=[20,200]").results["evaluation"]
    assert about["dataset"].items() >= {"name": "folder", "root": str(pictures), "val_fraction": 0.34}.items()
    assert about["images"] == {"train": 36, "bank": 28, "query": 8}
    assert about["classes"] == 3
    assert about["probes"] == {"knn": {"k": [20, 28], "temperature": 0.07, "bank_dtype": "float32"}}
    preparation = {"eval_resize": 16, "eval_crop": 16, "eval_interpolation": "bicubic", "eval_squash": False}
    preparation |= {"normalize": "dataset", "mean": [0.5] * 3, "std": [0.157] * 3}
    assert about["preparation"] == preparation
    assert about["baselines"] == {"bank": 28, "query": 8}
    assert list(about["intervals"]["knn"]) == ["raw_pixels", "histogram", "untrained", "pretrained"]


def test_baselines_on_a_part_of_the_images(pretrained, commands, pictures):
    outcome = commands.evaluate("knn", pretrained.last, pictures, "evaluation.baseline_images=[14,4]", "module.k=3")
    assert outcome.code == 0, outcome.err
    rows = ["chance", "raw_pixels", "histogram", "untrained", "pretrained_subset", "pretrained"]
    assert list(outcome.results["knn"]) == rows
    assert outcome.results["evaluation"]["baselines"] == {"bank": 14, "query": 4}
    assert "14 of 28 images of the bank, 4 of 8 of the query (evaluation.baseline_images)" in outcome.out
    assert "rows above the last: 4 query images and 14 of the bank; evaluation.baselines=true takes all" in outcome.out
    none = commands.evaluate("knn", pretrained.last, pictures, "evaluation.baselines=false", "module.k=3")
    assert none.results["knn"] == {"pretrained": outcome.results["knn"]["pretrained"]}


def test_more_neighbours_than_the_bank_has_images(pretrained, commands, pictures):
    all_vote = commands.evaluate("knn", pretrained.last, pictures, "module.k=[28,7]")
    more = commands.evaluate("knn", pretrained.last, pictures, "module.k=[200,7]")
    assert more.code == 0, more.err
    assert more.out.count("k-NN: k=200 is more than the 28 images of the bank, so all 28 vote\n") == 1
    assert more.results["metrics"] == all_vote.results["metrics"]


def test_without_labels_it_says_what_can_be_measured(pretrained, commands, unlabelled):
    outcome = commands.evaluate("knn", pretrained.last, unlabelled)
    assert outcome.code == 1
    assert "esvit-knn needs labels, and the images have none: put the images into one folder for each" in outcome.err
    assert not (outcome.folder / "config.yaml").exists()  # before the run began
    free = commands.evaluate("knn", pretrained.last, unlabelled, "evaluator@module=rankme")
    assert free.code == 0, free.err
    assert list(free.results["rankme"]) == ["untrained", "pretrained"]
    assert f"rankme  {free.results['metrics']['rankme']:6.4g}" in free.out


def test_logistic_regression_of_a_checkpoint(pretrained, commands, pictures):
    outcome = commands.evaluate("knn", pretrained.last, pictures, "evaluator@module=logistic")
    assert outcome.code == 0, outcome.err
    assert list(outcome.results["logistic"])[-1] == "pretrained"
    assert "logistic regression" in outcome.out
    said = re.search(r"C=(\S+?),? (the border of the search, )?was chosen on \d+ images held out", outcome.out)
    assert said is not None
    assert float(said[1]) == pytest.approx(outcome.results["metrics"]["logistic/C"], rel=1e-2)
    low, high = outcome.results["evaluation"]["intervals"]["logistic"]["pretrained"]
    assert low <= outcome.results["logistic"]["pretrained"] <= high


def test_few_shot_of_a_checkpoint(pretrained, commands, pictures):
    outcome = commands.evaluate("knn", pretrained.last, pictures, "evaluator@module=few_shot", "module.n=[2,1]")
    assert outcome.code == 0, outcome.err
    metrics = outcome.results["metrics"]
    assert set(metrics) >= {"few_shot/top1", "few_shot/spread", "few_shot/n1/top1", "few_shot/n1/spread"}
    assert outcome.results["few_shot"]["pretrained"] == metrics["few_shot/top1"]
    assert "few-shot" in outcome.out


def test_a_bank_in_half_precision(pretrained, commands, pictures):
    outcome = commands.evaluate("knn", pretrained.last, pictures, "module.bank_dtype=float16")
    assert outcome.code == 0, outcome.err
    assert outcome.results["evaluation"]["probes"]["knn"]["bank_dtype"] == "float16"
    wrong = commands.evaluate("knn", pretrained.last, pictures, "module.bank_dtype=float8")
    assert wrong.code == 1
    assert "bank_dtype" in wrong.err


def test_features_are_kept_for_another_probe(pretrained, commands, pictures, tmp_path, monkeypatch):
    words = [f"cache={tmp_path}/features", "module.k=3"]
    first = commands.evaluate("knn", pretrained.last, pictures, *words)
    assert first.code == 0, first.err
    assert len(list((tmp_path / "features").iterdir())) == 2 * 4  # bank and query of four rows

    def breaks(*args, **kwargs):
        raise AssertionError("the backbone was asked again")

    monkeypatch.setattr("esvit_pl.backbones.swin.Swin.forward", breaks)
    again = commands.evaluate("knn", pretrained.last, pictures, *words)
    assert again.code == 0, again.err
    assert again.results["knn"] == first.results["knn"]
    other = commands.evaluate("knn", pretrained.last, pictures, words[0], "evaluator@module=rankme")
    assert other.code == 0, other.err


def test_lidar_of_a_checkpoint_needs_no_labels(pretrained, commands, unlabelled):
    words = ["evaluator@module=lidar", "module.views=4", "module.images=6"]
    outcome = commands.evaluate("knn", pretrained.last, unlabelled, *words)
    assert outcome.code == 0, outcome.err
    assert list(outcome.results["lidar"]) == ["untrained", "pretrained"]
    assert 1 <= outcome.results["lidar"]["pretrained"] <= 5  # directions between 6 images
    assert "LiDAR" in outcome.out


def test_every_block_of_a_checkpoint_beside_rows_that_have_one(pretrained, commands, pictures):
    words = ["evaluator@module=per_block", "module.views=4", "module.images=6"]
    outcome = commands.evaluate("knn", pretrained.last, pictures, *words)
    assert outcome.code == 0, outcome.err
    assert list(outcome.results["per_block"]) == ["raw_pixels", "histogram", "untrained", "pretrained"]
    measures = ("effective_rank", "rankme", "region_diversity", "lidar")
    assert list(outcome.results["metrics"]) == [f"{measure}/block{block}" for block in (2, 1) for measure in measures]
    assert outcome.results["per_block"]["pretrained"] == outcome.results["metrics"]["effective_rank/block2"]


def test_without_arguments_it_says_what_it_needs(commands):
    outcome = commands.run("knn")
    assert outcome.code == 1
    assert "esvit-knn needs ckpt_path=\n" in outcome.err
    assert "esvit-knn ckpt_path=RUN/checkpoints/last.ckpt" in outcome.err


def test_the_report_is_aligned():
    assert report({"knn/top1": 0.375, "knn/k3/top1": 1.0}, "logs") == (
        "\nknn/top1      37.5%\nknn/k3/top1  100.0%\n\nlogs/"
    )
