"""`loss=` as a user types it, on the embedded photographs: training, resuming, evaluation, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toys
from commandline import Outcome

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),
]
LOSSES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "loss").glob("*.yaml"))
RIVALS = [name for name in LOSSES if not name.startswith("view")]
FEW = ["dataset.train_patches=8", "dataset.test_patches=3", "datamodule.batch_size=32", "evaluation.baselines=false"]
SHORT = [*FEW, "trainer.max_epochs=2", "evaluation.probes=[knn]", "callbacks.checkpoint.every_n_epochs=1"]


def words_of(loss: str) -> list[str]:
    if loss == "byol_regions":
        return ["experiment=embedded", "loss=view_region", "view=byol", "loss.view.hidden_dim=16", *SHORT]
    queue = ["loss.queue_length=64", "loss.queue_start_epoch=0"] if loss == "swav" else []
    small = ["backbone=igpt_embedded", "backbone.width=16", "backbone.depth=4", "backbone.side=8"]
    return ["experiment=embedded", f"loss={loss}", *queue, *(small if loss == "igpt" else []), *SHORT]


def states(*outcomes) -> list[dict[str, torch.Tensor]]:
    return [torch.load(outcome.last, weights_only=True)["state_dict"] for outcome in outcomes]


@pytest.mark.usefixtures("nothing_drawn")
@pytest.mark.parametrize(
    "loss",
    [pytest.param(name, marks=[] if name in ("moby", "swav", "ibot") else pytest.mark.slow) for name in RIVALS]
    + [pytest.param("byol_regions", marks=pytest.mark.slow)],
)
def test_it_trains_goes_on_exactly_and_is_measured(loss, commands):
    whole = commands.run("pretrain", *words_of(loss))
    assert whole.code == 0, whole.err
    losses = [name for name in whole.results["metrics"] if name.startswith("train/") and name.endswith("_loss")]
    assert losses
    assert 0 < whole.results["metrics"]["knn/top1"] <= 1
    first = whole.folder / "checkpoints" / "epoch_000.ckpt"
    again = commands.run("pretrain", *words_of(loss), f"ckpt_path={first}")
    assert again.code == 0, again.err
    one, other = states(whole, again)
    assert toys.largest_difference(one, other) == 0
    measured = commands.run("knn", f"ckpt_path={whole.last}", "dataset=photographs", "trainer=cpu", *FEW[:2])
    assert measured.code == 0, measured.err
    assert measured.results["metrics"]["knn/top1"] == pytest.approx(whole.results["metrics"]["knn/top1"])


@pytest.mark.parametrize("loss", ["simclr", "densecl"])
def test_methods_of_two_views_want_no_local_crops(loss, commands):
    refused = commands.run("pretrain", *words_of(loss), "augment.num_local=2", "dry_run=true")
    assert refused.code == 1
    assert "compares two views of an image, and the crops make 4" in refused.err
    assert "set augment.num_local=0 or augment=global_only" in refused.err


@pytest.mark.parametrize("loss", ["ibot", "simmim", "mpp"])
def test_methods_that_hide_patches_want_masks(loss, commands):
    refused = commands.run("pretrain", *words_of(loss), "augment.mask_cell=0", "dry_run=true")
    assert refused.code == 1
    assert "augment.mask_cell=0 draws no masks" in refused.err or "positive cell" in refused.err


def test_igpt_wants_a_backbone_that_does_not_see_ahead(commands):
    refused = commands.run("pretrain", "experiment=embedded", "loss=igpt", *SHORT, "dry_run=true")
    assert refused.code == 1
    assert "Swin sees all at once; choose backbone=igpt_small or igpt_embedded" in refused.err


def test_a_region_loss_beside_a_method_that_hides_patches_is_refused(commands):
    words = ["experiment=embedded", "loss=view_region", "+loss.view._target_=esvit_pl.objectives.SimMIMObjective"]
    words += ["loss._target_=esvit_pl.objectives.WithRegionsObjective", "dry_run=true"]
    refused = commands.run("pretrain", *words)
    assert refused.code == 1
    assert "SimMIMObjective hides patches from the student" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("loss", [*RIVALS, "byol_regions"])
def test_two_processes_by_command_are_one_up_to_rounding(loss, commands, tmp_path):
    one = commands.run("pretrain", *words_of(loss))
    assert one.code == 0, one.err
    more = ["trainer=ddp_cpu", "trainer.devices=2", "datamodule.batch_size=16", "out=two"]
    words = [word for word in words_of(loss) if not word.startswith("datamodule.batch_size")]
    two = commands.in_a_process("pretrain", *words, *more, folder=tmp_path)
    assert two.returncode == 0, two.stderr
    mine, other = (
        outcome.metric(next(name for name in outcome.names() if name.startswith("train/") and name.endswith("_loss")))
        for outcome in (one, Outcome(0, "", "", tmp_path / "two"))
    )
    assert other == pytest.approx(mine, rel=1e-2)
