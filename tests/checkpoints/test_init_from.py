from __future__ import annotations

import pytest
import torch
import toys
from pytorch_lightning.callbacks import ModelCheckpoint

from esvit_pl.augment import EvaluationTransform, Recipe
from esvit_pl.backbones import build
from esvit_pl.checkpoints import read_checkpoint, safetensors_file, timm_folder
from esvit_pl.checkpoints.pickled import read_pickled
from esvit_pl.checkpoints.released import to_released
from esvit_pl.modules import Pretrainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training of both losses: the module, and its checkpoint in our format and in the released one."""
    folder = tmp_path_factory.mktemp("run")
    module = toys.pretrainer()
    saver = ModelCheckpoint(folder, save_last=True)
    toys.trainer(folder, callbacks=[saver], enable_checkpointing=True).fit(module, toys.loader(16, 8))
    torch.save(to_released(read_checkpoint(folder / "last.ckpt", moments=True)), folder / "released.pth")
    return module, {"esvit_pl": folder / "last.ckpt", "released EsViT": folder / "released.pth"}


def fresh(**overrides):
    torch.manual_seed(1)
    return toys.Pretrainer(toys.backbone(), toys.objective(**overrides), toys.OptimizerRecipe())


@pytest.mark.parametrize("kind", ["esvit_pl", "released EsViT"])
def test_everything_is_taken_from_where_it_belongs(run, kind):
    trained, paths = run
    module = fresh()
    line = module.start_from(read_checkpoint(paths[kind]))
    assert toys.largest_difference(toys.state(module), toys.state(trained)) == 0
    assert line == (
        f"init_from={paths[kind]} ({kind}, 2 epochs): student from its student, teacher from its teacher; "
        "heads: region, view; state of the loss: centers.region.value, centers.view.value"
    )


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_both_networks_from_one_without_heads(run, network):
    trained, paths = run
    module = fresh()
    before = toys.state(module)
    line = module.start_from(read_checkpoint(paths["esvit_pl"]), network=network, heads=False)
    wanted = toys.state(getattr(trained, network).backbone)
    for mine in (module.student, module.teacher):
        assert toys.largest_difference(toys.state(mine.backbone), wanted) == 0
        assert toys.largest_difference(toys.state(mine.heads), toys.state(module.teacher.heads)) == 0
    after = toys.state(module)
    assert all(torch.equal(after[name], before[name]) for name in before if "heads" in name or "center" in name)
    assert f"student from its {network}, teacher from its {network}; new heads: region, view" in line


def test_a_view_checkpoint_goes_on_with_both_losses(run, tmp_path):
    """The release's way to Swin-B and to windows of 14: the region head and its centre start afresh, equal in both."""
    old = toys.pretrainer({"region_weight": 0.0, "view_weight": 1.0})
    saver = ModelCheckpoint(tmp_path, save_last=True)
    toys.trainer(tmp_path, callbacks=[saver], enable_checkpointing=True).fit(old, toys.loader(16, 8))
    module = fresh()
    line = module.start_from(read_checkpoint(tmp_path / "last.ckpt"))
    assert line.endswith("heads: view; new heads: region; state of the loss: centers.view.value")
    for name in ("student", "teacher"):
        mine, other = getattr(module, name), getattr(old, name)
        assert toys.largest_difference(toys.state(mine.heads["view"]), toys.state(other.heads["view"])) == 0
    student, teacher = toys.state(module.student.heads["region"]), toys.state(module.teacher.heads["region"])
    assert toys.largest_difference(student, teacher) == 0
    assert torch.equal(module.objective.centers["view"].value, old.objective.centers["view"].value)
    assert not module.objective.centers["region"].value.any()


@pytest.mark.parametrize("kind", ["timm folder", "safetensors"])
@pytest.mark.parametrize("name", ["swin", "test_vit", "test_resnet"])
def test_training_to_other_formats_and_back_to_training_is_bit_exact(tmp_path, kind, name):
    sizes = toys.backbone().spec if name == "swin" else {"name": name}
    torch.manual_seed(0)
    teacher = build(**sizes).eval()
    teacher.transform = EvaluationTransform(Recipe())
    if kind == "timm folder":
        timm_folder.save(teacher, tmp_path / "out")
    else:
        safetensors_file.save(teacher, tmp_path / "out")
    module = Pretrainer(build(**sizes), toys.objective(), toys.OptimizerRecipe())
    line = module.start_from(read_checkpoint(tmp_path / "out"))
    assert f"({kind}): student from its backbone, teacher from its backbone; new heads: region, view" in line
    for network in (module.student, module.teacher):
        assert toys.largest_difference(toys.state(network.backbone), toys.state(teacher)) == 0


def test_what_does_not_fit_is_told_with_the_way_out(run):
    _, paths = run
    source = read_checkpoint(paths["esvit_pl"])
    with pytest.raises(ValueError, match=r"the view head of .*last.ckpt[^?]*direction \(12, 6\) instead of \(20, 6\) "):
        fresh(num_prototypes=20).start_from(source)
    with pytest.raises(ValueError, match=r"\(12 and 20 prototypes\)[^?]*init.heads=false takes the backbone alone"):
        fresh(num_prototypes=20).start_from(source)
    narrow = toys.pretrainer(network={"embed_dim": 4})
    with pytest.raises(ValueError, match="its backbone has embed_dim=8 there, 4 here; choose backbone= to match"):
        narrow.start_from(source)
    other = toys.pretrainer(network={"window": 2})
    with pytest.raises(ValueError, match="window=4 there, 2 here.*\n.*init.resize_positions=true resizes"):
        other.start_from(source)
    other.start_from(source, resize_positions=True)
    table = other.teacher.backbone.layers[0].blocks[0].attn.relative_position_bias_table
    assert table.shape == (9, 1)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_released_training_goes_on_as_if_nothing_had_happened(tmp_path, optimizer):
    """Two epochs of four, written as the release does and read again, then the rest: bit-exact.

    That carries weights, centres, moments and their step, learning rate, momentum, temperature, epoch and order.
    """
    settings = {"optimizer": {"name": optimizer, "warmup_epochs": 1}, "loss": {"teacher_temp_warmup_epochs": 3}}
    whole = toys.pretrainer(**settings)
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    long = toys.trainer(tmp_path, callbacks=[saver], enable_checkpointing=True, max_epochs=4)
    long.fit(whole, toys.loader(16, 8))
    torch.save(to_released(read_checkpoint(tmp_path / "epoch=1.ckpt", moments=True)), tmp_path / "released.pth")

    torch.manual_seed(3)
    module = toys.pretrainer(**settings)
    line = module.continue_from(read_checkpoint(tmp_path / "released.pth", moments=True))
    assert line.startswith(f"ckpt_path={tmp_path}/released.pth (released EsViT, 2 epochs): student from its student")
    saver = ModelCheckpoint(tmp_path / "again", filename="{epoch}", save_top_k=-1)
    rest = toys.trainer(tmp_path, callbacks=[saver], enable_checkpointing=True, max_epochs=4)
    rest.fit(module, toys.loader(16, 8))
    assert toys.largest_difference(toys.state(module), toys.state(whole)) == 0
    assert (rest.global_step, rest.current_epoch) == (long.global_step, long.current_epoch) == (8, 4)
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["epoch=2.ckpt", "epoch=3.ckpt"]
    for name in ("epoch=2", "epoch=3"):
        mine, other = (read_pickled(folder / f"{name}.ckpt") for folder in (tmp_path / "again", tmp_path))
        assert mine["loops"] == other["loops"]
        assert (mine["epoch"], mine["global_step"]) == (other["epoch"], other["global_step"])


def test_another_training_is_not_gone_on_with(run, tmp_path):
    _, paths = run
    source = read_checkpoint(paths["released EsViT"], moments=True)
    sgd = toys.pretrainer(optimizer={"name": "sgd"})
    with pytest.raises(ValueError, match="its optimizer is adamw, and optimizer= is sgd\n  init_from= starts a new"):
        sgd.continue_from(source)
    view = toys.pretrainer({"region_weight": 0.0})
    with pytest.raises(
        ValueError,
        match=r"not in the model: heads.region[^?]*state of the loss: not in the model: centers.region.value",
    ):
        view.continue_from(source)
    wide = toys.pretrainer(network={"window": 2})
    with pytest.raises(ValueError, match="student: of another shape: .*windows of 4 and 2"):
        wide.continue_from(source)
    torch.save(read_pickled(paths["released EsViT"])["teacher"], tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="holds no epoch or no optimizer, so there is no training to go on with"):
        toys.pretrainer().continue_from(read_checkpoint(tmp_path / "bare.pth", moments=True))
