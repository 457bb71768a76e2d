"""The three losses of docs/extending.md, in a package that this library does not know, wherever ours can go.

A contrastive loss without a teacher, a queue of momentum keys with a predictor, and masked prediction.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import documents
import pytest
import torch
import toys
import yaml
from commandline import Commands, Outcome

import esvit_pl
from esvit_pl.backbones import FAMILIES
from esvit_pl.configs import instantiation
from esvit_pl.modules import Pretrainer
from esvit_pl.optim import OptimizerRecipe
from esvit_pl.schedules import SHAPES

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),
]
SWIN = ["swin_micro_32px", "embed_dim=8", "num_heads=[1,2]", "window=4", "img_size=32"]
MASKED = [f"backbone{'.' * bool(n)}{'=' * (not n)}{word}" for n, word in enumerate(SWIN)] + ["augment.mask_cell=8"]
LOSSES = {"contrastive": "contrast", "momentum_queue": "queue", "masked": "colour"}
"""Option of the group loss -> its term."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that holds the package `theirs` as the document writes it, on Python's path."""
    root = tmp_path_factory.mktemp("package")
    for block in documents.blocks(documents.ROOT / "docs" / "extending.md"):
        if block.title is not None:
            path = root / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body, encoding="utf-8")
    families, allowed, shapes = dict(FAMILIES), list(instantiation._allowed), dict(SHAPES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        patch.setenv("ESVIT_PLUGINS", "theirs")
        yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]
    FAMILIES.clear()
    FAMILIES.update(families)
    SHAPES.clear()
    SHAPES.update(shapes)
    instantiation._allowed[:] = allowed


def words_of(loss: str) -> list[str]:
    chosen = [
        "hydra.searchpath=[pkg://theirs.conf]",
        "experiment=squares",
        f"loss={loss}",
        "callbacks=[default,learning_curve]",
    ]
    return [*chosen, *(MASKED if loss == "masked" else [])]


# The contrastive loss, which needs least of the library, is slow.
@pytest.fixture(
    scope="module", params=[pytest.param("contrastive", marks=pytest.mark.slow), "momentum_queue", "masked"]
)
def trained(request: pytest.FixtureRequest, package: Path, commands: Commands) -> tuple[str, Outcome]:
    """A training by command with the default callbacks, and a checkpoint of each epoch."""
    outcome = commands.run("pretrain", *words_of(request.param), "callbacks.checkpoint.every_n_epochs=1")
    assert outcome.code == 0, outcome.err
    return request.param, outcome


def test_it_trains_with_the_default_callbacks_and_shows_its_own_loss(trained):
    loss, outcome = trained
    term = LOSSES[loss]
    lines = [line for line in outcome.out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert all(f"{term} " in line and "k-NN " in line for line in lines)
    assert f"{term} loss" in outcome.out.rpartition("after 2 epochs")[2]
    assert all(torch.isfinite(torch.tensor(outcome.metric(f"train/{term}_loss"))))
    assert 0 < outcome.results["metrics"]["knn/top1"] <= 1
    assert (outcome.folder / "figures" / "learning_curve.png").is_file()


def test_its_checkpoint_is_read_and_measured(trained, commands):
    _, outcome = trained
    backbone = esvit_pl.load_backbone(outcome.last)
    assert backbone(torch.zeros(1, 3, 32, 32)).pooled.shape == (1, backbone.width)
    more = ["dataset=squares", "augment=cifar", "trainer=cpu", "module.k=5", "datamodule.num_workers=0"]
    measured = commands.run("knn", "hydra.searchpath=[pkg://theirs.conf]", f"ckpt_path={outcome.last}", *more)
    assert measured.code == 0, measured.err
    assert measured.results["metrics"]["knn/top1"] == pytest.approx(outcome.results["metrics"]["knn/top1"])


@pytest.mark.usefixtures("nothing_drawn")
def test_it_is_resumed_exactly(trained, commands):
    loss, outcome = trained
    first = outcome.folder / "checkpoints" / "epoch_000.ckpt"
    resumed = commands.run("pretrain", *words_of(loss), f"ckpt_path={first}")
    assert resumed.code == 0, resumed.err
    whole, again = (torch.load(run.last, weights_only=True)["state_dict"] for run in (outcome, resumed))
    assert toys.largest_difference(whole, again) == 0
    begun = torch.load(first, weights_only=True)["state_dict"]
    assert toys.largest_difference(whole, begun) > 0
    if loss == "momentum_queue":
        assert int(whole["objective.pointer"]) == 2 * 96 % 96
        assert not torch.equal(whole["objective.queue"], begun["objective.queue"])


def test_it_is_planned_and_its_memory_is_predicted(trained, commands):
    loss, _ = trained
    planned = commands.run("pretrain", *words_of(loss), "dry_run=true")
    assert planned.code == 0, planned.err
    assert "global batch          32 images" in planned.out
    said = commands.run("bench", "memory", "recipe", "batch_size=4", "repeats=1", *words_of(loss))
    assert said.code == 0, said.err
    assert "batch 4 needs" in said.out
    assert "step" in said.out


@pytest.mark.usefixtures("nothing_drawn")
def test_it_trains_from_python(trained, tmp_path):
    loss, outcome = trained
    settings = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words_of(loss))}
    run = esvit_pl.pretrain(out=tmp_path / "run", **settings)
    mine, other = (torch.load(path, weights_only=True)["state_dict"] for path in (run.checkpoint, outcome.last))
    assert toys.largest_difference(mine, other) == 0


def test_masks_that_nobody_draws_are_missed_before_the_training(package, commands):
    words = [word for word in words_of("masked") if not word.startswith("augment.mask_cell")]
    refused = commands.run("pretrain", *words, "dry_run=true")
    assert refused.code == 1
    assert "augment.mask_cell=0 draws no masks; set it to the side in pixels of a region" in refused.err


@pytest.mark.slow
def test_it_trains_on_two_processes_by_command(trained, package, tmp_path):
    loss, _ = trained
    words = [*words_of(loss), "trainer=ddp_cpu", "trainer.devices=2", "datamodule.batch_size=16"]
    command = [Path(sys.executable).parent / "esvit-pretrain", *words, f"hydra.run.dir={tmp_path}/run"]
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert "global batch 32 images (16 x 2 processes x 1 accumulated)" in done.stdout


def train_on_ranks(path: Path, ranks: int, objective: Any, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = Pretrainer(toys.backbone(), objective, OptimizerRecipe(lr=0.5, warmup_epochs=0)).double()
    options |= {"strategy": "ddp_spawn" if ranks > 1 else "auto", "devices": ranks, "precision": "64-true"}
    toys.trainer(path, **options).fit(module, toys.loader(32, 8 // ranks, torch.float64))
    return toys.state(module)


def test_two_processes_and_two_micro_batches_fill_the_queue_in_the_order_of_one_process(package, tmp_path):
    make = import_module("theirs.momentum_queue").MomentumQueueObjective
    sizes = {"hidden_dim": 8, "out_dim": 4, "length": 48, "batch_norm": False}
    one, two = (train_on_ranks(tmp_path, n, seeded(make, **sizes), accumulate_grad_batches=2) for n in (1, 2))
    assert toys.largest_difference(one, two) < 1e-9
    assert int(one["objective.pointer"]) == 64 % 48


def test_gradients_flow_to_the_rows_of_other_processes(package, tmp_path):
    """Contrastive: two processes of 4 images are one of 8."""
    theirs = import_module("theirs.contrastive")
    one, two = (
        train_on_ranks(tmp_path, n, seeded(theirs.ContrastiveObjective, hidden_dim=8, out_dim=4)) for n in (1, 2)
    )
    assert toys.largest_difference(one, two) < 1e-9


def seeded(make: Any, **sizes: Any) -> Any:
    torch.manual_seed(1)
    return make(**sizes)
