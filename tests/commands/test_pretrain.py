"""esvit-pretrain as a user types it: what a run leaves behind, how it goes on, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import hydra
import pytest
import torch
from commandline import VIEWS
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from esvit_pl.checkpoints import read_checkpoint
from esvit_pl.checkpoints.released import to_released
from esvit_pl.commands import results as results_of_runs
from esvit_pl.commands.pretrain import main
from esvit_pl.datasets import folder
from esvit_pl.evaluation.names import ROWS
from esvit_pl.modules import Pretrainer
from esvit_pl.objectives import EsViTObjective
from esvit_pl.runs.reading import read_overrides

CHEAP = ["trainer.max_epochs=1", "callbacks=[progress,checkpoint]", "optimizer.warmup_epochs=0"]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def same(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


# -- a whole run


def test_the_plan_is_printed_before_the_first_epoch_and_the_table_and_the_files_at_the_end(pretrained):
    lines = pretrained.out.splitlines()
    starts = [
        "data: 36 images to train on, 3 classes",
        "each epoch uses 32 of 36 images: the last 4 do not",
        "global batch 8 images",
    ]
    starts += ["epoch 1/2  view ", "epoch 2/2  view "]
    at = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert at == sorted(at)
    assert "4 steps an epoch, 8 steps in 2 epochs, peak lr 0.000625 (0.02 per 256 images)" in lines[at[2]]
    for line in (lines[at[3]], lines[at[4]]):
        assert re.fullmatch(
            r"epoch ./2  view \d\.\d{3}  region \d\.\d{3}  k-NN +[\d.]+%  [\d,]+ images/s  (\d+ s left|done)", line
        )
    table = next(i for i, line in enumerate(lines) if line.split() == ["k-NN", "linear"])
    assert lines[table - 2] == "8 query images, 28 in the bank; ranges are 95 % intervals"
    rows = [line.split("  ")[0] for line in lines[table + 1 : lines.index("", table)]]
    assert rows == [
        titles.table for row, titles in ROWS.items() if row not in ("initial", "pretrained_subset", "from_scratch")
    ]
    assert f"{pretrained.folder}/" in lines[table:]
    assert "  checkpoints/last.ckpt" in lines[table:]
    assert pretrained.err == ""


def test_results_hold_every_row_of_both_probes(pretrained):
    results = pretrained.results
    rows = ["chance", "raw_pixels", "histogram", "untrained", "pretrained"]
    assert results["status"] == "finished"
    for probe in ("knn", "linear"):
        assert list(results[probe]) == rows
        assert results[probe]["chance"] == pytest.approx(1 / 3)
        assert all(0 <= value <= 1 for value in results[probe].values())
    assert results["knn"]["pretrained"] == results["metrics"]["knn/top1"] == pretrained.metric("knn/top1")[-1]
    assert results["metrics"]["train/view_loss"] == pytest.approx(pretrained.metric("train/view_loss")[-1])


def test_the_log_holds_losses_accuracies_schedules_and_speed_of_every_epoch(pretrained):
    names = ["view_loss", "region_loss", "lr", "weight_decay", "teacher_momentum", "teacher_temp"]
    wanted = {f"train/{name}" for name in names} | {"knn/top1", "knn/top5"}
    wanted |= {"time/images_per_second", "time/data_wait_share"}
    assert wanted <= pretrained.names()
    with (pretrained.folder / "metrics.csv").open() as file:
        epochs = {(row["name"], row["epoch"]) for row in csv.DictReader(file)}
    assert {(name, epoch) for name in wanted for epoch in "01"} <= epochs
    assert all(0 <= share <= 1 for share in pretrained.metric("time/data_wait_share"))
    assert 0 < pretrained.metric("train/lr")[-1] < pretrained.metric("train/lr")[0] == pytest.approx(0.000625)


def test_the_checkpoints_are_plain_and_of_the_epochs_that_they_name(pretrained):
    folder = pretrained.folder / "checkpoints"
    kept = ["epoch_000.ckpt", "epoch_001.ckpt", "last.ckpt", "previous.ckpt"]
    assert sorted(path.name for path in folder.iterdir()) == kept
    assert torch.load(folder / "previous.ckpt", weights_only=True)["global_step"] == 4
    first, second, last = (
        torch.load(folder / name, weights_only=True) for name in ("epoch_000.ckpt", "epoch_001.ckpt", "last.ckpt")
    )
    assert (first["global_step"], second["global_step"], last["global_step"]) == (4, 8, 8)
    assert same(second["state_dict"], last["state_dict"])
    assert not same(first["state_dict"], last["state_dict"])
    entry = last["esvit_pl"]
    assert entry == json.loads(json.dumps(entry))
    assert entry["backbone"]["embed_dim"] == entry["config"]["backbone"]["embed_dim"] == 8
    assert entry["config"]["paths"]["output_dir"] == str(pretrained.folder)


def test_the_run_folder_says_how_the_run_was_made(pretrained):
    config = OmegaConf.load(pretrained.folder / "config.yaml")
    assert "${" not in (pretrained.folder / "config.yaml").read_text()
    assert config.loss.num_prototypes == 16
    environment = json.loads((pretrained.folder / "environment.json").read_text())
    assert environment["command"][0] == "esvit-pretrain"
    assert "loss.num_prototypes=16" in environment["command"]
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["cores"] == os.cpu_count()
    assert {"python", "platform", "processor", "gpus", "git"} <= environment.keys()


def test_a_past_run_composes_again(pretrained, commands):
    past = ["--config-dir", str(pretrained.folder / ".hydra"), "--config-name", "config", "--cfg", "job", "--resolve"]
    again = commands.run("pretrain", *past, "+hydra=default", "paths.output_dir=elsewhere")
    assert again.code == 0
    text = (pretrained.folder / "config.yaml").read_text().replace(str(pretrained.folder), "elsewhere")
    then, now = OmegaConf.create(text), OmegaConf.create(again.out)
    del then.paths, now.paths  # where runs go is the machine's affair
    assert then == now


def test_the_pictures_can_be_opened(pretrained):
    figures = sorted((pretrained.folder / "figures").iterdir())
    names = ["attention", "comparison", "correspondence", "crops", "learning_curve", "neighbours", "pca"]
    assert [path.stem for path in figures] == names
    for path in figures:
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 10  # something is drawn
    with Image.open(pretrained.folder / "figures" / "neighbours.png") as image:
        assert image.height > 1.5 * image.width  # six queries of seven images, pretrained and untrained: twelve rows


def test_all_that_the_final_probes_say_is_kept(pretrained):
    metrics = pretrained.results["metrics"]
    assert metrics["linear/top1"] == pretrained.results["linear"]["pretrained"]
    assert metrics["linear/best_on_query/top1"] == max(metrics["linear/lr0.1/top1"], metrics["linear/lr1/top1"])


def test_a_training_from_weights_may_spare_them_and_is_compared_with_its_start(pretrained, commands, pictures):
    words = [f"init_from={pretrained.last}", "init.warm_heads_epochs=1", "init.lr_factor=0.5", "init.layer_decay=0.8"]
    outcome = commands.pretrain(pictures, *words, "callbacks=[default,harm]", "callbacks.harm.patience=1")
    assert outcome.code == 0, outcome.err
    start = re.search(r"before the first step: knn/top1 ([\d.]+)", outcome.out)
    metrics = outcome.results["metrics"]
    assert metrics["harm/start"] == pytest.approx(float(start[1]), abs=1e-4)
    assert metrics["train/backbone_lr"] == pytest.approx(0.5 * 0.8 * metrics["train/lr"])
    refused = commands.pretrain(pictures, "init.lr_factor=0.5")
    assert "init.lr_factor=0.5 spares a backbone that has learnt before; give init_from=" in refused.err
    other = commands.pretrain(pictures, f"ckpt_path={outcome.last}", *words[1:2], "init.layer_decay=0.8")
    assert "init.lr_factor: 0.5 in the checkpoint, 1.0 now" in other.err


def test_a_process_of_its_own_prints_nothing_else(pictures, commands, tmp_path):
    words = commands.tiny_pretraining(pictures, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}")
    done = commands.in_a_process("pretrain", *words, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "finished"
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["git"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing lies beside it


@pytest.mark.slow
def test_two_processes_leave_one_run_folder_and_print_each_line_once(pictures, commands, tmp_path):
    words = ["trainer=ddp_cpu", "evaluation.probes=[knn]", f"hydra.run.dir={tmp_path / 'run'}"]
    done = commands.in_a_process("pretrain", *commands.tiny_pretraining(pictures, *words), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["knn"]["pretrained"] == results["metrics"]["knn/top1"]
    assert "global batch 16 images (8 x 2 processes x 1 accumulated), 2 steps an epoch" in done.stdout
    for start in ("data: ", "global batch ", "epoch 2/2 ", "after 2 epochs"):
        assert sum(line.startswith(start) for line in done.stdout.splitlines()) == 1, done.stdout


# -- going on


def test_a_resumed_run_ends_like_one_that_nothing_interrupted(pretrained, commands, pictures):
    checkpoint = pretrained.folder / "checkpoints" / "epoch_000.ckpt"
    resumed = commands.pretrain(pictures, f"ckpt_path={checkpoint}")
    assert resumed.code == 0, resumed.err
    assert "epoch 1/2" not in resumed.out
    assert same(weights(resumed.last), weights(pretrained.last))
    assert resumed.metric("train/view_loss") == pretrained.metric("train/view_loss")[1:]


def test_a_run_goes_on_in_its_own_folder_from_any_of_its_checkpoints(pretrained, commands, pictures, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pretrained.folder, run)
    words = commands.tiny_pretraining(pictures, "callbacks.checkpoint.every_n_epochs=1")
    resumed = commands.run("pretrain", *words, f"ckpt_path={run}/checkpoints/epoch_000.ckpt", "out=null")
    assert resumed.code == 0, resumed.err
    assert resumed.out.splitlines()[0] == f"resuming {run} from epoch 1 (2nd of 2), step 4 of 8"
    resumed = resumed._replace(folder=run)
    assert resumed.results["status"] == "finished"
    assert same(weights(resumed.last), weights(pretrained.last))
    for name in ("train/view_loss", "train/lr", "knn/top1"):
        assert resumed.metric(name) == pretrained.metric(name)
    assert sorted(path.name for path in (run / "checkpoints.1").iterdir()) == ["epoch_001.ckpt", "last.ckpt"]
    assert (run / "config.1.yaml").read_bytes() == (pretrained.folder / "config.yaml").read_bytes()
    assert f"ckpt_path={run}/checkpoints/epoch_000.ckpt" in read_overrides(run)
    assert {".hydra.1", "metrics.1.csv", "results.1.json"} <= {path.name for path in run.iterdir()}
    assert not (run / "run.lock").exists()


def test_settings_that_differ_are_all_told_and_nothing_is_touched(pretrained, commands, pictures):
    before = {path: path.read_bytes() for path in pretrained.folder.rglob("*") if path.is_file()}
    words = ["optimizer=sgd", "augment.flip=0.1", "trainer.limit_train_batches=2", "datamodule.num_workers=1"]
    words = commands.tiny_pretraining(pictures, *words, f"ckpt_path={pretrained.folder}", "out=null")
    mistyped = commands.run("pretrain", *words, "resume.allow=[optimizer.lrr]")
    assert "resume.allow: there is no setting optimizer.lrr; name settings or groups" in mistyped.err
    refused = commands.run("pretrain", *words, "resume.allow=[augment]")
    assert refused.code == 1
    assert "\n  optimizer.name: adamw in the checkpoint, sgd now (its moments do not fit another optim" in refused.err
    assert "\n  steps in an epoch (trainer.limit_train_batches): 4 in the checkpoint, 2 now" in refused.err
    assert "augment.flip" not in refused.err.partition("ckpt_path: ")[2]
    assert "num_workers" not in refused.err.partition("ckpt_path: ")[2]
    assert {path: path.read_bytes() for path in pretrained.folder.rglob("*") if path.is_file()} == before


def test_another_seed_may_be_allowed_at_the_end_of_an_epoch(pretrained, commands, pictures):
    words = [f"ckpt_path={pretrained.folder}/checkpoints/epoch_000.ckpt", "seed=5", "evaluation.probes=[]"]
    resumed = commands.pretrain(pictures, *words, "resume.allow=[seed]")
    assert resumed.code == 0, resumed.err
    assert "\nallowed to differ: seed: 0 in the checkpoint, 5 now\n" in resumed.out
    assert resumed.metric("train/lr") == pretrained.metric("train/lr")[1:]
    assert resumed.metric("train/view_loss") != pretrained.metric("train/view_loss")[1:]


@pytest.mark.fault(
    "output folder: it holds a run",
    "refused, nothing is changed, and the command that goes on is told; `overwrite=true` removes that run alone",
)
def test_a_folder_that_holds_a_run_is_refused_and_overwritten_by_word(commands, pictures, tmp_path):
    folder = tmp_path / "mine"
    words = commands.tiny_pretraining(pictures, *CHEAP, f"out={folder}")
    assert commands.run("pretrain", *words).code == 0
    (folder / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused = commands.run("pretrain", *words)
    assert refused.code == 1
    assert f"{folder} already holds a run (finished after 4 steps); nothing in it was changed" in refused.err
    assert f"ckpt_path={folder}/checkpoints/last.ckpt\n" in refused.err
    assert "overwrite=true" in refused.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    replaced = commands.run("pretrain", *words, "overwrite=true", "seed=7")
    assert replaced.code == 0, replaced.err
    assert "left alone: notes.txt" in replaced.out
    assert OmegaConf.load(folder / "config.yaml").seed == 7
    assert (folder / "notes.txt").read_text() == "mine"
    lost = commands.run("pretrain", *words, "overwrite=true", f"init_from={folder}/checkpoints/last.ckpt")
    assert f"overwrite=true would remove init_from={folder}/checkpoints/last.ckpt" in lost.err
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_a_finished_run_may_be_measured_again(pretrained, commands, pictures):
    again = commands.pretrain(pictures, f"ckpt_path={pretrained.last}", "evaluation.probes=[knn]")
    assert again.code == 0, again.err
    assert "after 2 epochs, 8 steps: there was nothing left to train" in again.out
    assert again.results["knn"]["pretrained"] == pretrained.results["knn"]["pretrained"]


def test_ctrl_c_keeps_the_last_epoch_and_the_run_goes_on_from_it_in_the_same_folder(
    pretrained, commands, pictures, monkeypatch
):
    step = Pretrainer.training_step

    def interrupted(self, batch, batch_idx):
        if self.trainer.global_step == 6:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "training_step", interrupted)
        stopped = commands.pretrain(pictures)
    assert stopped.code == 128 + signal.SIGINT
    assert stopped.results["status"] == "stopped"
    assert "Traceback" not in stopped.err
    assert torch.load(stopped.last, weights_only=True)["global_step"] == 4

    resumed = commands.pretrain(pictures, f"ckpt_path={stopped.last}", folder=stopped.folder)
    assert resumed.code == 0, resumed.err
    assert resumed.results["status"] == "finished"
    assert same(weights(resumed.last), weights(pretrained.last))
    assert resumed.metric("train/view_loss") == pretrained.metric("train/view_loss")


def test_sigterm_is_no_success(commands, pictures, monkeypatch):
    step = Pretrainer.training_step

    def terminated(self, batch, batch_idx):
        if self.trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Pretrainer, "training_step", terminated)
    stopped = commands.pretrain(pictures, *CHEAP)
    assert stopped.code == 128 + signal.SIGTERM
    assert stopped.results["status"] == "stopped"
    last = stopped.folder / "checkpoints" / "last.ckpt"
    place, again = stopped.out.splitlines()[-2:]
    assert place == f"SIGTERM: epoch 1, step 3 is saved in {last}"
    assert again.startswith("go on with it: esvit-pretrain ")
    assert again.endswith(f" ckpt_path={last}")
    monkeypatch.undo()
    resumed = commands.run("pretrain", *shlex.split(again)[5:])
    assert resumed.code == 0
    assert f"resuming {last} from epoch 0" in resumed.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["backbone.embed_dim=12", "backbone.num_heads=[1,3]"],
            r"\n  backbone.embed_dim: 8 in the checkpoint, 12 now\n  backbone.num_heads: .*"
            r"\n  weights of another shape: teacher.backbone.patch_embed.proj.weight \(8, 3, 4, 4\) instead of \(12,",
        ),
        (
            ["loss=view"],
            r"loss.region_weight: 0.5 in the checkpoint, 0.0 now\n  weights not in the model: teacher.heads.region.mlp",
        ),
        (["datamodule.batch_size=9"], r"images in a step \(datamodule.batch_size\): 8 \(8 x 1 proc.* 9 \(9 x 1 proc"),
        (["seed=1"], "seed: 0 in the checkpoint, 1 now"),
        (["ckpt_path=nowhere.ckpt"], "^ckpt_path=nowhere.ckpt: there is no such file or folder"),
    ],
    ids=["backbone", "loss", "batch_size", "seed", "no_file"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(pretrained, commands, pictures, words, said):
    outcome = commands.pretrain(pictures, f"ckpt_path={pretrained.folder}/checkpoints/epoch_000.ckpt", *words)
    assert outcome.code == 1
    assert re.search(said, outcome.err), outcome.err
    assert "Traceback" not in outcome.err


# -- beginning with weights that exist


@pytest.fixture(scope="module")
def released(pretrained, tmp_path_factory):
    """The first epoch of the run, as the released code would have saved it."""
    path = tmp_path_factory.mktemp("released") / "checkpoint.pth"
    checkpoint = pretrained.folder / "checkpoints" / "epoch_000.ckpt"
    torch.save(to_released(read_checkpoint(checkpoint, moments=True)), path)
    return path


def test_a_released_checkpoint_is_resumed_to_the_same_end(pretrained, released, commands, pictures):
    probes = ["evaluation.probes=[knn]", "evaluation.baselines=true"]
    resumed = commands.pretrain(pictures, f"ckpt_path={released}", *probes)
    assert resumed.code == 0, resumed.err
    assert resumed.results["knn"] == pretrained.results["knn"]  # the untrained row is that of no training at all
    assert f"ckpt_path={released} (released EsViT, 1 epoch): student from its student" in resumed.out
    assert "epoch 1/2" not in resumed.out
    assert same(weights(resumed.last), weights(pretrained.last))


def test_a_new_training_begins_with_old_weights(pretrained, released, commands, pictures):
    """Of the backbone alone, with another loss, at epoch 1 of 2; measured before and after."""
    words = [f"init_from={released}", "init.network=teacher", "init.heads=false", "start_epoch=1", "loss=view"]
    outcome = commands.pretrain(pictures, *words, "evaluation.baselines=true", "evaluation.probes=[knn]")
    assert outcome.code == 0, outcome.err
    assert f"init_from={released} (released EsViT, 1 epoch): student from its teacher, teacher from" in outcome.out
    assert "; new heads: view\n" in outcome.out
    assert "epoch 1/2" not in outcome.out
    assert "after 2 epochs, 8 steps" in outcome.out
    assert re.search(r"before this training +[\d.]+%", outcome.out)
    before = commands.evaluate("knn", released, pictures, *VIEWS)
    assert outcome.results["knn"]["initial"] == before.results["knn"]["pretrained"]
    assert "untrained" not in outcome.results["knn"]


def test_tables_are_resized_on_request_and_other_standardisation_is_noted(pretrained, commands, pictures):
    words = [f"init_from={pretrained.last}", "init.resize_positions=true", "backbone.window=2", "augment.std=[1,1,1]"]
    outcome = commands.pretrain(pictures, *words, *CHEAP, "evaluation.probes=[]")
    assert outcome.code == 0, outcome.err
    table = "teacher.backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    assert weights(outcome.last)[table].shape == (9, 1)
    assert "was trained on images standardised otherwise: augment.std=[0.157,0.157,0.157] there, [1,1,1]" in outcome.out


def test_a_run_that_began_with_old_weights_is_resumed_by_adding_ckpt_path(pretrained, released, commands, pictures):
    begun = commands.pretrain(pictures, f"init_from={released}", *CHEAP, "evaluation.probes=[]")
    more = commands.pretrain(
        pictures,
        f"init_from={released}",
        f"ckpt_path={begun.last}",
        "resume.allow=[trainer.max_epochs]",
        *CHEAP,
        "evaluation.probes=[]",
        "trainer.max_epochs=2",
    )
    assert more.code == 0, more.err
    assert "init_from=" not in more.out
    assert "after 2 epochs, 8 steps" in more.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["init_from=nowhere.pth"], "init_from=nowhere.pth: there is no such file or folder"),
        (["loss.num_prototypes=20"], "init_from: the view head of .* instead of .*init.heads=false takes the backbone"),
        (["backbone.window=2"], "windows of 4 and 2.*choose backbone= to match.*init.resize_positions=true"),
        (["init_from=null", "start_epoch=1"], "start_epoch=1 leaves out the first epochs, .* give init_from="),
        (["start_epoch=2"], r"start_epoch=2 lies at or after the end of training \(trainer.max_epochs=2\)"),
        (["init_from=null", "ckpt_path={released}", "optimizer=sgd"], "^ckpt_path=.*its optimizer is adamw, and opt"),
        (["init.network=pupil"], "init_from: .* holds no pupil; its networks are student, teacher"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_beginning_that_cannot_be_is_refused(released, commands, pictures, words, said):
    words = [word.replace("{released}", str(released)) for word in words]
    outcome = commands.pretrain(pictures, f"init_from={released}", *words)
    assert outcome.code == 1
    assert re.search(said, outcome.err, re.DOTALL), outcome.err
    assert "Traceback" not in outcome.err


# -- other data, other recipes


def test_a_folder_without_labels_runs_and_is_measured_without_them(commands, unlabelled):
    outcome = commands.pretrain(unlabelled, "evaluation.probes=[knn,linear]", "evaluation.baselines=true")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("no labels: k-NN accuracy (callbacks.knn) left out") == 1
    assert "data: 16 images to train on, no labels; " in outcome.out
    assert outcome.results["status"] == "finished"
    assert not {"knn", "linear"} & outcome.results.keys()
    health = ["view_teacher_entropy", "view_kl", "view_center_norm", "matched_share", "region_loss"]
    assert {f"train/{name}" for name in health} <= outcome.names()
    assert not any(name.startswith("knn") for name in outcome.names())
    pictures = ["attention.png", "correspondence.png", "crops.png", "learning_curve.png", "neighbours.png", "pca.png"]
    assert sorted(path.name for path in (outcome.folder / "figures").iterdir()) == pictures
    measures = ("effective_rank", "rankme", "region_diversity")
    for name in measures:
        assert list(outcome.results[name]) == ["untrained", "pretrained"]
        assert outcome.results["metrics"][name] == outcome.results[name]["pretrained"] > 0
    assert outcome.results["evaluation"]["images"] == {"train": 16, "bank": 7, "query": 9}
    lines = outcome.out.splitlines()
    table = lines.index("16 images, no labels")
    assert re.split("  +", lines[table + 1].strip()) == ["effective rank", "RankMe", "region diversity"]
    assert lines[table + 3].split()[2:] == [f"{outcome.results[name]['pretrained']:.3g}" for name in measures]


def test_knn_that_is_asked_for_on_data_without_labels_is_an_error(commands, unlabelled):
    outcome = commands.pretrain(unlabelled, "callbacks=knn", "trainer.max_epochs=1")
    assert outcome.code == 1
    assert "OnlineKNN needs labels" in outcome.err
    assert "put the images into one folder for each class" in outcome.err
    assert not outcome.folder.exists()


@pytest.mark.parametrize(
    ("words", "present", "absent"),
    [
        (["loss=view"], {"train/view_loss"}, {"train/region_loss", "train/matched_share"}),
        (["augment.num_local=0"], {"train/view_loss", "train/region_loss"}, set()),
        (["optimizer=sgd"], {"train/view_loss", "train/weight_decay"}, set()),
        (["optimizer=lars"], {"train/view_loss", "train/weight_decay"}, set()),
        (["trainer.accumulate_grad_batches=2", "trainer.max_epochs=2"], {"train/view_loss"}, set()),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_recipes_run(commands, pictures, words, present, absent):
    outcome = commands.pretrain(pictures, *CHEAP, *words)
    assert outcome.code == 0, outcome.err
    assert present <= outcome.names()
    assert not absent & outcome.names()
    assert all(torch.isfinite(value).all() for value in weights(outcome.last).values())


def test_several_local_sizes_are_all_seen(commands, pictures, monkeypatch):
    step, sizes = Pretrainer.training_step, []

    def spy(self, batch, batch_idx):
        sizes.append([view.shape[-1] for view in batch["views"]])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Pretrainer, "training_step", spy)
    words = ["augment.num_local=[2,1]", "augment.local_size=[12,8]", "augment.local_scale=[[0.2,0.4],[0.05,0.2]]"]
    outcome = commands.pretrain(pictures, *CHEAP, *words)
    assert outcome.code == 0, outcome.err
    assert sizes == [[16, 16, 12, 12, 8]] * 4


def test_without_a_logger_the_run_is_only_shown(commands, pictures):
    outcome = commands.pretrain(pictures, "trainer.max_epochs=1", "logger=null")
    assert outcome.code == 0, outcome.err
    assert not (outcome.folder / "metrics.csv").exists()
    assert not (outcome.folder / "lightning_logs").exists()
    assert "epoch 1/1  view " in outcome.out
    assert "train/view_loss" in outcome.results["metrics"]


def test_without_callbacks_there_is_no_checkpoint(commands, pictures):
    outcome = commands.pretrain(pictures, "trainer.max_epochs=1", "callbacks=none")
    assert outcome.code == 0, outcome.err
    assert not list(outcome.folder.rglob("*.ckpt"))


def test_tensorboard_gets_event_files_beside_the_csv(commands, pictures):
    pytest.importorskip("tensorboard")
    outcome = commands.pretrain(pictures, *CHEAP, "logger=tensorboard")
    assert outcome.code == 0, outcome.err
    assert list((outcome.folder / "tensorboard").glob("events.out.tfevents.*"))
    assert "train/view_loss" in outcome.names()


def test_one_batch_to_see_that_it_runs(commands, pictures):
    outcome = commands.pretrain(pictures, "trainer.fast_dev_run=true", "evaluation.probes=[knn]")
    assert outcome.code == 0, outcome.err
    assert outcome.results["status"] == "finished"
    assert 0 <= outcome.results["knn"]["pretrained"] <= 1


# -- what a sweeper sees


def compose(folder: Path, words: list[str]):
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("esvit_pl.conf", version_base="1.3"):
        return hydra.compose("pretrain", [*words, f"paths.output_dir={folder}"])


def test_the_metric_to_improve_is_returned_and_the_final_probe_counts(commands, pictures, tmp_path, monkeypatch):
    splits = folder(pictures)
    found = results_of_runs.Measured({"knn": {"pretrained": 0.123}}, {}, {"knn": "knn/top1"}, splits, splits)
    monkeypatch.setattr(results_of_runs, "measure", lambda *parts, **options: found)
    words = ["trainer.max_epochs=1", "optimized_metric=knn/top1", "evaluation.probes=[knn]"]
    cfg = compose(tmp_path, commands.tiny_pretraining(pictures, *words))
    value = main.__wrapped__(cfg)  # type: ignore[attr-defined]
    results = json.loads((tmp_path / "results.json").read_text())
    assert value == results["knn"]["pretrained"] == 0.123
    assert value != results["metrics"]["knn/top1"]  # of the callback, before the end


def test_a_metric_that_was_not_measured_is_named_with_those_that_were(commands, pictures):
    outcome = commands.pretrain(pictures, *CHEAP, "optimized_metric=knn/top2")
    assert outcome.code == 1
    assert "optimized_metric=knn/top2 was not measured; there are " in outcome.err
    assert "train/view_loss" in outcome.err
    assert outcome.results["status"] == "finished"
    assert outcome.last.is_file()


def test_a_sweep_gives_each_value_a_run_folder(commands, pictures):
    outcome = commands.pretrain(pictures, "-m", *CHEAP, "callbacks=[checkpoint]", "seed=1,2")
    assert outcome.code == 0, outcome.err
    folders = [outcome.folder / name for name in "01"]
    assert [OmegaConf.load(folder / "config.yaml").seed for folder in folders] == [1, 2]
    assert all(json.loads((folder / "results.json").read_text())["status"] == "finished" for folder in folders)
    one, other = (weights(folder / "checkpoints" / "last.ckpt") for folder in folders)
    assert not same(one, other)


def test_three_epochs_need_no_further_setting(commands, pictures):
    words = ["optimizer.warmup_epochs=null", "trainer.max_epochs=3", "callbacks=[progress,checkpoint]"]
    outcome = commands.pretrain(pictures, *words)
    assert outcome.code == 0, outcome.err
    shrunk = ["optimizer.warmup_epochs=0.3 in place of 10", "loss.teacher_temp_warmup_epochs=1 in place of 30"]
    shrunk += ["module.freeze_prototypes_epochs=0.03 in place of 1"]
    assert f"3 epochs are less than 100, so these shrink: {', '.join(shrunk)}\n" in outcome.out
    assert outcome.metric("train/teacher_temp") == pytest.approx([0.04, 0.07, 0.07])
    peak, *_ = rates = outcome.metric("train/lr")  # of 12 steps, the last of each epoch; 0.3 epochs are one step
    assert rates == sorted(rates, reverse=True)
    assert peak > 0.0005
    again = commands.pretrain(pictures, *words, f"ckpt_path={outcome.last}", "trainer.max_epochs=3")
    assert again.code == 0, again.err


# -- what is refused, before training starts


@pytest.mark.fault(
    "number: one that cannot be (no images in a batch, no epochs, no devices, a momentum of 2, a seed of -1)",
    "refused before the first step: the setting, its value, and what is wanted",
)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["datamodule.batch_size=40"], r"one step needs 40 images .* and there are 36: lower batch_size to 36 or less"),
        (["optimizer.warmup_epochs=3"], r"optimizer.warmup_epochs=3 is longer than training \(trainer.max_epochs=2\)"),
        (
            ["loss.teacher_temp_warmup_epochs=30"],
            r"loss.teacher_temp_warmup_epochs=1 would do",
        ),
        (["module.freeze_prototypes_epochs=3"], r"module.freeze_prototypes_epochs=0.02 would do"),
        (["trainer.max_epochs=0"], r"trainer.max_epochs must be a whole number, 1 or more, got 0"),
        (["trainer.limit_train_batches=0"], r"trainer.limit_train_batches=0 leaves nothing to train on"),
        (["seed=-1"], r"seed must be a whole number from 0 to 4294967295, got -1"),
        (["seed=4294967296"], r"seed must be a whole number from 0 to 4294967295, got 4294967296"),
        (["trainer.max_steps=0"], r"trainer.max_steps must be 1 or more, or -1 .*, got 0"),
        (["trainer.max_time=-1"], r"trainer.max_time must be days:hours:minutes:seconds, such as .*, got -1"),
        (["trainer.max_time='00:00:00:00'"], r"trainer.max_time must be days:hours:minutes:seconds, .*, got 00:00"),
        (["trainer.devices=0"], r"trainer.devices=0 is not a number of devices"),
        (["trainer.devices=[]"], r"trainer.devices=\[\] leaves no device; give 1 or more"),
        (["datamodule.batch_size=0"], r"datamodule.batch_size must be 1 or more, got 0"),
        (["loss.num_prototypes=0"], r"loss: EsViTObjective needs a positive num_prototypes, got 0"),
        (["module.momentum=2"], r"module: the teacher needs momentum between 0 and 1, got 2"),
        (["trainer.max_epochs=-1"], r"training without an end has no schedules; set trainer.max_epochs"),
        (["optimizer.lr=-1"], r"optimizer needs lr of 0 or more, got -1"),
        (["augment.num_local=-1"], r"augment.num_local must be 0 or more, got -1"),
        (["datamodule.batch_size=-8"], r"datamodule.batch_size must be 1 or more, got -8"),
        (["datamodule.num_workers=-1"], r"datamodule.num_workers must be 0 or more"),
        (["loss.num_prototypes=-16"], r"loss: EsViTObjective needs a positive num_prototypes, got -16"),
        (["module.clip_grad=-1"], r"module: the training step needs clip_grad of 0 or more, got -1"),
        (["backbone.embed_dim=-8"], r"backbone: .*embed_dim"),
        (["callbacks.knn.k=-1"], r"got callbacks.knn.k=-1"),
        (["dataset.val_fraction=-0.1"], r"dataset.val_fraction must lie between 0 and 1, got -0.1"),
        (["trainer.accumulate_grad_batches=-1"], r"trainer.accumulate_grad_batches must be 1 or more, got -1"),
        (["augment.local_size=2"], r"augment: a crop of 2 px is smaller than a patch of the backbone \(4 px\)"),
        (["backbone=swin_tinny_w7"], r"did you mean backbone=swin_tiny_w7"),
        (
            ["backbone.name=swim"],
            r"backbone: unknown backbone family 'swim'; did you mean swin or .* no model of timm",
        ),
        (["loss.region_start_epoch=2"], r"loss.region_start_epoch=2 lies at or after the end of training"),
        (
            ["trainer.gradient_clip_val=1"],
            r"trainer.gradient_clip_val=1.* beside .*leave it null and set module.clip_grad",
        ),
        (
            ["evaluation.probes=[knm]"],
            r"evaluation.probes holds knm; there are effective_rank, few_shot, knn, .*, rankme and region_diversity",
        ),
        (
            ["evaluation.probes=[linear]"],
            r"evaluation.linear: last_blocks needs n between 1 and the backbone's 2 blocks",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_refused_before_the_first_step(commands, pictures, monkeypatch, words, said):
    def trained(*args):
        raise AssertionError("training has started")

    monkeypatch.setattr(Pretrainer, "training_step", trained)
    outcome = commands.pretrain(pictures, *words)
    assert outcome.code == 1
    assert re.search(said, outcome.err, re.DOTALL), outcome.err
    assert "Traceback" not in outcome.err
    assert not list(outcome.folder.rglob("*.ckpt"))


@pytest.mark.fault(
    "folder of images: not there, empty, or without images", "refused before anything is built: what was looked for"
)
@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "dataset.root={root}: there is no such folder"),
        ([], "dataset: no image below '{root}': looked for jpg"),
        (["notes.txt", "deeper/table.csv"], "dataset: no image below '{root}': looked for jpg"),
    ],
    ids=["missing", "empty", "no images"],
)
def test_a_folder_without_images_is_refused(commands, tmp_path, files, said):
    root = tmp_path / "images"
    if files is not None:
        root.mkdir()
    for name in files or []:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no image")
    outcome = commands.pretrain(root)
    assert outcome.code == 1
    assert said.format(root=root) in outcome.err
    assert "Traceback" not in outcome.err


def test_without_images_it_says_what_it_needs(commands):
    outcome = commands.run("pretrain")
    assert outcome.code == 1
    assert "esvit-pretrain needs images: dataset=folder dataset.root=FOLDER, or an experiment" in outcome.err
    assert not outcome.folder.exists()


@pytest.mark.fault(
    "images: one cannot be read",
    "the run ends and names it and the reason; `esvit-data check` lists all such images before",
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named(commands, tmp_path, pictures, workers):
    for path in pictures.rglob("*.jpg"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "red" / "07.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    outcome = commands.pretrain(tmp_path, *CHEAP, f"datamodule.num_workers={workers}", "datamodule.batch_size=36")
    assert outcome.code == 1
    assert f"cannot read the image file '{broken}'" in outcome.err
    assert f"cannot read the image file '{broken}'" in outcome.results["error"]
    assert outcome.results["status"] == "failed"
    assert "Traceback" not in outcome.err


@pytest.mark.fault("GPU: asked for, and not there", "refused: which setting asks for it, and `trainer=cpu`")
def test_a_gpu_that_is_not_there_is_refused(commands, pictures, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    outcome = commands.pretrain(pictures, "trainer=gpu")
    assert outcome.code == 1
    assert "trainer.accelerator=gpu" in outcome.err
    assert "choose trainer=cpu" in outcome.err


# -- a loss that is not finite


@pytest.mark.fault(
    "loss: not finite",
    "the run ends with `NonFiniteLoss` and its step; the last checkpoint is the state to resume from",
)
def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(commands, pictures, pretrained, monkeypatch):
    forward = EsViTObjective.forward

    def blown(self, student, teacher, batch, progress):
        losses = forward(self, student, teacher, batch, progress)
        if progress.step == 6:
            losses.terms["view"] = losses.terms["view"] * float("nan")
        return losses

    monkeypatch.setattr(EsViTObjective, "forward", blown)
    outcome = commands.pretrain(pictures, "callbacks.checkpoint.every_n_epochs=1")
    assert outcome.code == 1
    assert "NonFiniteLoss: the loss is not finite at optimizer step 6 (epoch 1)" in outcome.err
    assert "ckpt_path" in outcome.err
    assert "Traceback" not in outcome.err
    assert (outcome.results["status"], outcome.results["error"][:13]) == ("failed", "NonFiniteLoss")
    assert same(weights(outcome.last), weights(pretrained.folder / "checkpoints" / "epoch_000.ckpt"))
    assert sorted(path.name for path in outcome.last.parent.iterdir()) == ["epoch_000.ckpt", "last.ckpt"]


@pytest.mark.fault("number: `optimizer.lr=1e30`", "the run ends with `NonFiniteLoss`; nothing is saved")
def test_a_learning_rate_out_of_all_bounds_fails_as_a_loss_that_is_not_finite(commands, pictures):
    outcome = commands.pretrain(pictures, *CHEAP, "optimizer.lr=1e30")
    assert outcome.code == 1
    assert "NonFiniteLoss" in outcome.err
    assert not list(outcome.folder.rglob("*.ckpt"))
