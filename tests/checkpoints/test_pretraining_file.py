from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toys
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from esvit_pl.augment import EvaluationTransform, Recipe
from esvit_pl.checkpoints import load_backbone, read_checkpoint
from esvit_pl.checkpoints.pickled import read_pickled
from esvit_pl.modules import Pretrainer
from esvit_pl.objectives.interface import Losses, Objective
from esvit_pl.optim import OptimizerRecipe

TRANSFORM = EvaluationTransform(Recipe(mean=(0.1, 0.2, 0.3), eval_resize=40, eval_crop=32))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    module = toys.pretrainer(config={"note": "plain"}, transform=TRANSFORM)
    saver = ModelCheckpoint(folder, save_last=True)
    toys.trainer(folder, callbacks=[saver], enable_checkpointing=True).fit(module, toys.loader(16, 8))
    return module, folder / "last.ckpt"


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_the_backbone_comes_back_from_the_checkpoint_alone(trained, network):
    module, path = trained
    backbone = load_backbone(path, network=network)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(x).pooled, getattr(module, network).backbone(x).pooled)
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_checkpoint_says_what_it_is(trained):
    module, path = trained
    said = read_pickled(path)["esvit_pl"]
    assert said["format"] == 2
    optimizer = module.optimizers().optimizer
    names = {id(parameter): name for name, parameter in module.student.named_parameters()}
    assert said["parameters"] == [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == "esvit_pl"
    assert checkpoint.backbone == module.student.backbone.spec
    assert checkpoint.config == {"note": "plain"}
    assert checkpoint.epoch == 2
    assert checkpoint.guessed == ()


def test_networks_centers_and_moments_are_the_modules(trained):
    module, path = trained
    checkpoint = read_checkpoint(path, moments=True)
    assert toys.largest_difference(checkpoint.networks["student"], toys.state(module.student)) == 0
    assert toys.largest_difference(checkpoint.networks["teacher"], toys.state(module.teacher)) == 0
    assert toys.largest_difference(checkpoint.objective, toys.state(module.objective)) == 0
    optimizer = module.optimizers().optimizer
    assert checkpoint.moments.name == "adamw"
    for name, parameter in module.student.named_parameters():
        assert torch.equal(checkpoint.moments.of[name]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_images_are_prepared_as_in_the_training(trained):
    module, path = trained
    assert module.encoder.transform == TRANSFORM
    assert load_backbone(path).transform == TRANSFORM
    assert load_backbone(path).transform != EvaluationTransform(Recipe())


def test_a_file_of_a_newer_version_is_refused(trained, tmp_path):
    checkpoint = read_pickled(trained[1])
    checkpoint["esvit_pl"]["format"] = 3
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt is of format 3, and this version of esvit_pl reads up to 2"):
        read_checkpoint(tmp_path / "a.ckpt")


# ---- without a teacher -----------------------------------------------------------------------------------------------


class Distance(Objective):
    """The first two views shall look alike, compared with a memory of what was seen; no teacher, no centre."""

    uses_teacher = False

    def __init__(self) -> None:
        super().__init__()
        self.spec = {"name": "distance"}
        self.register_buffer("memory", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def heads(self, width, region_width):
        return nn.ModuleDict({"projector": nn.Linear(width, 4)})

    def forward(self, student, teacher, batch, progress):
        one, two = student.z["projector"][:2]
        self.seen = one.detach().mean(0)
        return Losses({"distance": ((one - two) ** 2).mean() + (one - self.memory).mean()}, {"distance": 1.0})

    def commit(self, window):
        self.memory.mul_(0.9).add_(self.seen, alpha=0.1)
        self.count += 1


def without_teacher(seed: int = 0) -> Pretrainer:
    torch.manual_seed(seed)
    return Pretrainer(toys.backbone(), Distance(), OptimizerRecipe(lr=0.05, warmup_epochs=0))


def test_a_training_without_a_teacher_is_loaded_started_from_and_gone_on_with(tmp_path):
    module = without_teacher()
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    toys.trainer(tmp_path, callbacks=[saver], enable_checkpointing=True).fit(module, toys.loader(16, 8))
    path = tmp_path / "epoch=1.ckpt"
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_backbone(path)(x).pooled, module.student.backbone(x).pooled)
    assert torch.equal(load_backbone(path, network="student")(x).pooled, module.student.backbone(x).pooled)
    with pytest.raises(ValueError, match=r"epoch=1\.ckpt holds no teacher; its networks are student"):
        load_backbone(path, network="teacher")

    other = without_teacher(seed=1)
    line = other.start_from(read_checkpoint(path))
    assert line.endswith("student from its student; heads: projector; state of the loss: count, memory")
    assert toys.largest_difference(toys.state(other), toys.state(module)) == 0
    assert other.objective.count == 4

    again = without_teacher(seed=1)
    line = again.continue_from(read_checkpoint(tmp_path / "epoch=0.ckpt", moments=True))
    assert line.startswith(f"ckpt_path={tmp_path}/epoch=0.ckpt (esvit_pl, 1 epoch): student from its student")
    toys.trainer(tmp_path).fit(again, toys.loader(16, 8))
    assert toys.largest_difference(toys.state(again), toys.state(module)) == 0
    with pytest.raises(ValueError, match=r"it holds student, and this training has student, teacher"):
        toys.pretrainer().continue_from(read_checkpoint(path, moments=True))


# ---- format 1 --------------------------------------------------------------------------------------------------------

FORMAT_1 = Path(__file__).parent / "files" / "format_1.ckpt"
"""The first of two epochs of `commands.pretrain` with `SIZES`, by the last version that wrote format 1. The second
ended with the losses and the k-NN accuracy below."""
SIZES = ["backbone.embed_dim=4", "loss.num_prototypes=8", "loss.hidden_dim=8", "loss.out_dim=4"]


def test_a_file_of_format_1_is_read():
    checkpoint = read_checkpoint(FORMAT_1, moments=True)
    assert (checkpoint.format, checkpoint.epoch, checkpoint.moments.name) == ("esvit_pl", 1, "adamw")
    for name, moments in checkpoint.moments.of.items():
        assert moments["exp_avg"].shape == checkpoint.networks["student"][name].shape
    learning = {name for name in checkpoint.networks["student"] if "prototypes" not in name}  # these waited an epoch
    assert checkpoint.moments.of.keys() == learning
    backbone = load_backbone(FORMAT_1)
    assert backbone.transform.recipe.std == (0.157, 0.157, 0.157)
    assert backbone(backbone.transform(torch.zeros(3, 20, 20, dtype=torch.uint8))[None]).grid == (2, 2)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_a_training_of_format_1_goes_on(commands, pictures):
    # By then these were never shorter than in the published training, not even in one of two epochs.
    then = ["loss.teacher_temp_warmup_epochs=30", "module.freeze_prototypes_epochs=1"]
    resumed = commands.pretrain(pictures, *SIZES, *then, f"ckpt_path={FORMAT_1}", "evaluation.probes=[knn]")
    assert resumed.code == 0, resumed.err
    assert resumed.metric("train/view_loss")[-1] == pytest.approx(2.8420207, rel=1e-3)
    assert resumed.metric("train/region_loss")[-1] == pytest.approx(2.8860624, rel=1e-3)
    assert resumed.metric("knn/top1")[-1] == pytest.approx(0.375, abs=0.13)  # one of eight pictures
    assert read_pickled(resumed.last)["esvit_pl"]["format"] == 2


def test_a_file_of_format_1_is_evaluated_and_converted(commands, pictures, tmp_path):
    measured = commands.evaluate("knn", FORMAT_1, pictures)
    assert measured.code == 0, measured.err
    for to, out in (("safetensors", "a.safetensors"), ("released", "a.pth"), ("timm", "folder")):
        done = commands.run("convert", f"ckpt_path={FORMAT_1}", f"to={to}", f"out={tmp_path / out}")
        assert done.code == 0, done.err
        again = load_backbone(tmp_path / out)
        assert toys.largest_difference(toys.state(again), toys.state(load_backbone(FORMAT_1))) == 0
    released = read_checkpoint(tmp_path / "a.pth", moments=True)
    ours = read_checkpoint(FORMAT_1, moments=True)
    assert toys.largest_difference(released.objective, ours.objective) == 0
    assert released.moments.of.keys() == ours.moments.of.keys()


def test_weights_alone_are_no_training_to_go_on_with(tmp_path):
    """They can be looked at, and begin a new training."""
    saver = ModelCheckpoint(tmp_path, save_last=True, save_weights_only=True)
    toys.trainer(tmp_path, callbacks=[saver], enable_checkpointing=True, max_epochs=1).fit(
        toys.pretrainer(), toys.loader(16, 8)
    )
    assert read_checkpoint(tmp_path, moments=True).moments is None
    with pytest.raises(
        ValueError, match="no state of an optimizer, .*; init_from= in place of ckpt_path= starts a new"
    ):
        toys.trainer(tmp_path, max_epochs=2).fit(
            toys.pretrainer(), toys.loader(16, 8), ckpt_path=tmp_path / "last.ckpt", weights_only=True
        )
