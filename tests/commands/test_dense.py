"""esvit-dense: segmentation and keypoints of a checkpoint, on files in the layouts of the data sets."""

from __future__ import annotations

import csv
import inspect
import json

import numpy as np
import pytest
import torch
from dense_files import blocks, write_ade, write_spair, write_voc
from omegaconf import OmegaConf
from PIL import Image
from test_configs import compose

from esvit_pl.augment import Recipe
from esvit_pl.checkpoints import load_backbone, read_checkpoint
from esvit_pl.data import DenseLoaders
from esvit_pl.datasets import voc2012
from esvit_pl.evaluation import SegmentationKNN

CPU = ["trainer=cpu", "datamodule.num_workers=0", "datamodule.batch_size=2"]
SEGMENTATIONS = ["segmentation_knn", "segmentation_in_context", "segmentation_linear"]


@pytest.fixture
def voc(tmp_path):
    return write_voc(tmp_path / "voc", {"train": [blocks(i) for i in range(3)], "val": [blocks(i) for i in (7, 8)]})


def dense(commands, pretrained, *words):
    given = {word.partition("=")[0]: word for word in [f"ckpt_path={pretrained.folder}", *CPU, *words]}
    return commands.run("dense", *given.values())


def test_a_sweep_over_stages_ends_with_a_table_of_them(pretrained, commands, voc):
    pytest.importorskip("lightning.pytorch")  # through which Lightning talks where it is imported, too
    words = ["evaluation.probes=[segmentation_knn]", "evaluation.baselines=false", "stage=0,1"]
    outcome = dense(commands, pretrained, "-m", "dataset=voc2012", f"dataset.root={voc}", *words)
    assert outcome.code == 0, outcome.err
    header, *rows = csv.reader((outcome.folder / "sweep.csv").read_text().splitlines())
    assert header == ["run", "stage", "status", "epochs", "steps", "segmentation_knn/miou"]
    for stage, row in enumerate(rows):
        results = json.loads((outcome.folder / str(stage) / "results.json").read_text())
        assert row[1] == str(stage)
        assert float(row[-1]) == pytest.approx(results["segmentation_knn"]["pretrained"], abs=1e-4)
    assert "GPU available" not in outcome.out + outcome.err


def test_the_three_segmentations_of_voc_beside_raw_pixels_and_the_untrained_backbone(pretrained, commands, voc):
    outcome = dense(
        commands, pretrained, "dataset=voc2012", f"dataset.root={voc}", "evaluation.segmentation_linear.epochs=2"
    )
    assert outcome.code == 0, outcome.err
    results = outcome.results
    assert results["status"] == "finished"
    for probe in SEGMENTATIONS:
        assert list(results[probe]) == ["raw_pixels", "untrained", "pretrained"]
        assert all(0 < value <= 1 for value in results[probe].values())
        assert results["metrics"][f"{probe}/miou"] == results[probe]["pretrained"]
    assert {f"segmentation_knn/iou/{name}" for name in ("background", "aeroplane", "bicycle", "bird")} <= {
        *results["metrics"]
    }
    about = results["evaluation"]
    assert about["size"] == 32  # twice the crop of the training's evaluation
    assert about["dataset"]["name"] == "voc2012"
    assert about["probes"]["segmentation_linear"]["epochs"] == 2
    assert (outcome.folder / "config.yaml").is_file()
    rows = [line for line in outcome.out.splitlines() if line.startswith(("raw pixels", "untrained", "pretrained"))]
    assert len(rows) == 3
    assert f"{100 * results['segmentation_knn']['pretrained']:.1f}%" in rows[2]
    assert "k-NN mIoU" in outcome.out
    assert "masks: 21 classes" in outcome.out

    # the same in Python
    backbone, recipe = load_backbone(pretrained.folder), read_checkpoint(pretrained.folder).recipe
    found = SegmentationKNN().run(backbone, DenseLoaders(voc2012(voc), recipe, num_workers=0).data())
    assert found["segmentation_knn/miou"] == pytest.approx(results["segmentation_knn"]["pretrained"], abs=1e-6)


def test_another_stage_another_size_and_no_baselines_on_ade(pretrained, commands, tmp_path):
    root = write_ade(tmp_path, {"training": [blocks(0), blocks(1)], "validation": [blocks(2)]})
    words = ["dataset=ade20k", f"dataset.root={root}", "evaluation.probes=[segmentation_in_context]"]
    found = {}
    for stage in (0, 1, -1):
        more = [f"stage={stage}", "datamodule.size=64", "evaluation.baselines=false"]
        outcome = dense(commands, pretrained, *words, *more)
        assert outcome.code == 0, outcome.err
        assert list(outcome.results["segmentation_in_context"]) == ["pretrained"]
        assert outcome.results["evaluation"]["probes"]["segmentation_in_context"]["stage"] == stage
        assert outcome.results["evaluation"]["size"] == 64
        found[stage] = outcome.results["metrics"]
    assert found[1] == found[-1] != found[0]
    assert "segmentation_in_context/iou/thing1" in found[0]


def test_keypoints_of_spair(pretrained, commands, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    side = [[10, 10], [30, 20]], [0, 0, 40, 30]
    root = write_spair(tmp_path, [{"category": "cat", "src": ("a", image, *side), "trg": ("b", image, *side)}])
    outcome = dense(commands, pretrained, "dataset=spair71k", f"dataset.root={root}", "datamodule.size=64")
    assert outcome.code == 0, outcome.err
    assert outcome.results["keypoints"] == {"raw_pixels": 1, "untrained": 1, "pretrained": 1}  # the same picture twice
    assert outcome.results["metrics"]["keypoints/pck/cat"] == 1
    assert "keypoints PCK" in outcome.out
    wrong = dense(
        commands, pretrained, "dataset=spair71k", f"dataset.root={root}", "evaluation.probes=[segmentation_knn]"
    )
    assert wrong.code == 1
    assert "evaluation.probes=[segmentation_knn]: these images can be asked for keypoints" in wrong.err


def test_the_images_of_masks_can_be_trained_on(commands, voc):
    words = commands.tiny_pretraining(voc, "dataset=voc2012", "datamodule.batch_size=2")
    outcome = commands.run("pretrain", *(word for word in words if "val_fraction" not in word))
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "esvit-dense needs dataset="),
        (["dataset=folder", "dataset.root={pictures}"], "dataset=voc2012, ade20k or spair71k, got FolderDataset"),
        (["dataset=voc2012", "dataset.root={pictures}"], "Unpack VOCtrainval_11-May-2012.tar there"),
        (["dataset=voc2012", "dataset.root={pictures}/nowhere"], "there is no such folder"),
        (["dataset=voc2012", "dataset.root={voc}", "stage=2"], "stage=2 must lie between -2 and 1: there are 2 stages"),
        (
            ["dataset=voc2012", "dataset.root={voc}", "evaluation.probes=[knm]"],
            "evaluation.probes holds knm; there are",
        ),
        (["dataset=voc2012", "dataset.root={voc}", "evaluation.probes=knn"], "evaluation.probes"),
        (["dataset=voc2012", "dataset.root={voc}", "trainer=ddp_cpu"], "esvit-dense runs in one process, got 2"),
        (
            ["dataset=voc2012", "dataset.root={voc}", "datamodule.size=0"],
            "size and batch_size must be 1 or more, got 0",
        ),
    ],
)
def test_what_is_refused(pretrained, commands, pictures, voc, words, said):
    outcome = dense(commands, pretrained, *(word.format(pictures=pictures, voc=voc) for word in words))
    assert outcome.code == 1
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_masks_and_annotations_of_another_size_are_refused(pretrained, commands, voc, tmp_path):
    mask = voc / "VOCdevkit/VOC2012/SegmentationClass/2007_val00.png"
    Image.open(mask).resize((16, 32), Image.Resampling.NEAREST).save(mask)
    outcome = dense(commands, pretrained, "dataset=voc2012", f"dataset.root={voc}")
    assert outcome.code == 1
    assert "2007_val00.jpg has 32 x 32 pixels, and its mask 16 x 32" in outcome.err
    image = Image.new("RGB", (20, 10))
    pair = {"category": "cat", "src": ("a", image, [[1, 1]], [0, 0, 9, 9]), "trg": ("a", image, [[1, 1]], [0, 0, 9, 9])}
    root = write_spair(tmp_path, [pair])
    (annotation,) = (root / "SPair-71k/PairAnnotation/test").iterdir()
    annotation.write_text(json.dumps({**json.loads(annotation.read_text()), "trg_imsize": [10, 20, 3]}))
    outcome = dense(commands, pretrained, "dataset=spair71k", f"dataset.root={root}")
    assert outcome.code == 1
    assert "JPEGImages/cat/a.jpg has 20 x 10 pixels, and its annotation says 10 x 20" in outcome.err


def test_a_number_has_one_home():
    node = OmegaConf.to_container(compose("dense").datamodule)
    parameters = inspect.signature(DenseLoaders).parameters
    assert {name: parameters[name].default for name in node if name != "_target_"} == {
        name: value for name, value in node.items() if name != "_target_"
    }


def test_training_order_is_a_function_of_seed_and_epoch(voc):
    loaders = DenseLoaders(voc2012(voc), Recipe(eval_crop=16), batch_size=1, num_workers=0)

    def order(epoch):
        training = loaders.data().training
        training.set_epoch(epoch)
        return torch.cat([batch["index"] for batch in training.loader]).tolist()

    assert order(0) == order(0)
    assert sorted(order(1)) == [0, 1, 2]
    assert len({tuple(order(epoch)) for epoch in range(5)}) > 1
