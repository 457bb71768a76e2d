"""What the rivals have in common: closed values, several processes, what they remember, and what they refuse."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
import toys
from rivals import BATCH, MAKE, batch, training
from torch import nn

from esvit_pl.heads import MLPHead
from esvit_pl.losses import AssignmentLoss, assign
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives import (
    BYOLObjective,
    DenseCLObjective,
    IBOTObjective,
    MoBYObjective,
    MoCoV3Objective,
    MPPObjective,
    Progress,
    SimCLRObjective,
    SimMIMObjective,
    SwAVObjective,
    Views,
    WithRegionsObjective,
)
from esvit_pl.objectives.mpp import spoil
from esvit_pl.pretraining import PretrainingStep

NOW = Progress(0, 1)
ONE, OTHER = torch.eye(2)[:1].repeat(2, 1), torch.eye(2)[1:].repeat(2, 1)


def views(**z: list[torch.Tensor]) -> Views:
    return Views(pooled=next(iter(z.values())), regions=[], grids=[], z=dict(z))


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "wanted"),
    [
        (MoCoV3Objective(temp=1.0), "prediction", True, 4 * math.log(1 + math.exp(-1))),
        (MoCoV3Objective(temp=0.2), "prediction", True, 4 * 0.2 * math.log(1 + math.exp(-5))),
        (SimCLRObjective(temp=1.0), "projection", False, 2 * math.log(1 + 2 * math.exp(-1))),
        (BYOLObjective(), "prediction", True, 0.0),
    ],
    ids=["mocov3, T = 1", "mocov3, T = .2", "simclr", "byol"],
)
def test_two_images_at_right_angles(objective, student, teacher, wanted):
    eye = [torch.eye(2), torch.eye(2)]
    losses = objective(views(**{student: eye}), views(projection=eye) if teacher else None, {}, NOW)
    assert losses.total.item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("length", "wanted"), [(4096, 2 * math.log(1 + 4096 * math.exp(-5))), (2, 0.0268)])
def test_moby_with_a_queue_at_right_angles_to_the_query(length, wanted):
    objective = MoBYObjective(queue_length=length, out_dim=2)
    objective.queue.keys[:] = torch.tensor([0.0, 1.0])
    losses = objective(views(prediction=[ONE, ONE]), views(projection=[ONE, ONE]), {}, NOW)
    assert losses.total.item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(("target", "wanted"), [(ONE, 0.0), (OTHER, 4.0), (-ONE, 8.0)])
def test_byol_lies_between_0_and_8(target, wanted):
    losses = BYOLObjective()(views(prediction=[ONE, ONE]), views(projection=[target, target]), {}, NOW)
    assert losses.total.item() == pytest.approx(wanted, abs=1e-6)


def test_swav_deals_images_out_equally():
    equal = assign(torch.zeros(6, 3))
    assert equal == pytest.approx(torch.full((6, 3), 1 / 3))
    assert AssignmentLoss()([torch.zeros(6, 3)] * 2, [equal] * 2).item() == pytest.approx(math.log(3))
    torch.manual_seed(0)
    codes = assign(torch.rand(8, 4, dtype=torch.float64), iterations=100)
    assert codes.sum(0) == pytest.approx(torch.full((4,), 2.0, dtype=torch.float64), abs=1e-6)
    assert codes.sum(1) == pytest.approx(torch.ones(8, dtype=torch.float64), abs=1e-9)


def test_densecl_finds_a_flipped_map():
    objective = DenseCLObjective(queue_length=4, out_dim=3)
    objective.queue.keys[:] = torch.tensor([-1.0, 0.0, 0.0])
    regions, image = torch.eye(3)[None], torch.eye(3)[:1]
    flipped = regions.flip(1)
    student, teacher = (
        Views(pooled=[image] * 2, regions=[r, r], grids=[], z={"image": [image] * 2, "region": [r, r]})
        for r in (regions, flipped)
    )
    losses = objective(student, teacher, {}, NOW)
    # Each region meets itself: its own key at 1, four in the queue at -1, 0 and 0.
    queue = [4 * math.exp(q / 0.2) for q in (-1, 0, 0)]
    wanted = sum(math.log(1 + q * math.exp(-5)) for q in queue) / 3
    assert losses.terms["dense"].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("bits", [1, 3])
def test_mpp_that_knows_nothing_says_every_colour_equally(bits):
    objective = MPPObjective(bits=bits)
    view, mask = torch.rand(2, 3, 8, 8), torch.ones(2, 2, 2, dtype=torch.bool)
    said = views(color=[torch.zeros(2, 4, objective.num_classes)])
    said.grids = [(2, 2)]
    losses = objective(said, None, {"views": [view], "masks": [mask]}, NOW)
    assert losses.total.item() == pytest.approx(3 * bits * math.log(2), abs=1e-5)  # ln 512 with three bits


def test_mpp_spoils_a_tenth_hides_four_fifths_and_keeps_the_rest():
    view = torch.arange(64.0).view(1, 1, 8, 8).expand(50, 3, 8, 8)
    mask = torch.ones(50, 4, 4, dtype=torch.bool)
    mask[:, 0] = False
    spoilt = spoil(view, mask, 0.8, 0.1, seed=(3, 1))
    wrong = (spoilt.view != view).flatten(1).any(0)
    assert not (spoilt.view != view)[:, :, :2].any()  # the first row of cells is not spoilt
    assert wrong.any()
    assert not spoilt.mask[:, 0].any()
    assert spoilt.mask[:, 1:].float().mean().item() == pytest.approx(0.8, abs=0.05)
    moved = (spoilt.view != view).unflatten(2, (4, 2)).unflatten(4, (4, 2)).any(5).any(3).any(1)[:, 1:]  # (50 3 4)
    assert moved.float().mean().item() == pytest.approx(0.1 * 15 / 16, abs=0.04)  # one of 16 is replaced by itself
    assert not (moved & spoilt.mask[:, 1:]).any()


def test_simmim_is_the_mean_over_hidden_pixels():
    objective = SimMIMObjective(cell=2)
    view, mask = torch.zeros(1, 3, 4, 4), torch.tensor([[[True, False], [False, True]]])
    view[:, :, :2, :2], view[:, :, 2:, 2:] = 1.0, 3.0  # the two hidden cells; the others are painted wrong
    said = views(pixels=[torch.full((1, 4, 12), 0.5)])
    said.grids = [(2, 2)]
    losses = objective(said, None, {"views": [view], "masks": [mask]}, NOW)
    assert losses.total.item() == pytest.approx((0.5 + 2.5) / 2, rel=1e-4)
    said.grids = [(1, 1)]
    with pytest.raises(ValueError, match=r"paints regions of 3 x 2 x 2 .*got 3 x 4 x 4; set loss.cell"):
        objective(said, None, {"views": [view], "masks": [mask[:, :1, :1]]}, NOW)


def test_ibot_counts_an_image_without_masks_as_nothing():
    torch.manual_seed(0)
    objective = IBOTObjective(num_prototypes=5, out_dim=4, hidden_dim=8)
    z = {name: [torch.randn(2, *n, 4) for _ in range(2)] for name, n in (("view", ()), ("region", (3,)))}
    seen = Views(pooled=z["view"], regions=[], grids=[], z=z, prototypes=dict.fromkeys(z, torch.randn(5, 4)))
    masks = [torch.tensor([[[True, False, True]], [[False, False, False]]]), torch.zeros(2, 1, 3, dtype=torch.bool)]
    losses = objective(seen, seen, {"views": [], "masks": masks}, NOW)
    logits = [z["region"][0][0, n] @ seen.prototypes["region"].T for n in (0, 2)]
    wanted = [-((x / 0.04).softmax(-1) * (x / 0.1).log_softmax(-1)).sum() for x in logits]
    # The mean over two regions; over two images, of which one has none; over two views, of which one has none.
    assert losses.terms["patch"].item() == pytest.approx(float(sum(wanted)) / 2 / 2 / 2, rel=1e-5)


def test_ibot_hides_nothing_before_its_epoch():
    objective = IBOTObjective(num_prototypes=5, out_dim=4, hidden_dim=8, mask_start_epoch=2)
    given = {"views": [], "masks": [torch.ones(1, 2, 2, dtype=torch.bool), None]}
    at = [Progress(step, 40, steps_per_epoch=10) for step in (19, 20)]
    assert [bool(objective.student_sees(given, progress)[1][0].any()) for progress in at] == [False, True]
    objective.check(epochs=3)
    with pytest.raises(ValueError, match=r"mask_start_epoch=2 lies at or after the end .*nothing would ever be hidden"):
        objective.check(epochs=2)


# Batch norm: one view at a time, or all together


def test_batch_norm_of_one_view_is_not_that_of_two():
    torch.manual_seed(0)
    head = MLPHead([4, 8, 4])
    two = [torch.randn(6, 4), 3 + torch.randn(6, 4)]
    joint, apart = (
        MultiCropNetwork(toys.backbone(), nn.ModuleDict(), head_rows=rows).run_head(head, two)
        for rows in ("joint", "per_view")
    )
    alone = [head(view) for view in two]
    assert all(torch.equal(mine, other) for mine, other in zip(apart, alone, strict=True))
    assert not torch.allclose(joint[0], apart[0], atol=0.1)


def test_a_backbone_with_batch_norm_sees_view_by_view_where_heads_do():
    from esvit_pl.backbones import build

    torch.manual_seed(0)
    backbone = build("resnet18", img_size=32)
    two = [torch.randn(4, 3, 32, 32), 2 + torch.randn(4, 3, 32, 32)]
    apart = MultiCropNetwork(backbone, nn.ModuleDict(), head_rows="per_view")(two)
    joint = MultiCropNetwork(backbone, nn.ModuleDict(), head_rows="joint")(two)
    assert torch.equal(apart.pooled[0], backbone(two[0]).pooled)
    assert not torch.allclose(joint.pooled[0], apart.pooled[0], atol=0.1)


# Several processes


def on_two(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost"}
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meeting")
    for name in MAKE:
        result = training(name)
        if rank == 0:
            torch.save(result, Path(folder) / f"{name}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(on_two, args=(str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("name", MAKE)
def test_two_processes_train_like_one(name, of_two):
    """Weights, teacher, running statistics and queues, in float64."""
    one, said = training(name)
    two, said_by_two = torch.load(of_two / f"{name}.pt")
    assert said_by_two == pytest.approx(said, abs=1e-9)
    assert toys.largest_difference(one, two) < 1e-9
    begun, _ = training(name, steps=0)
    assert toys.largest_difference(begun, one) > 1e-3


# What is remembered


@pytest.mark.parametrize("name", [name for name in MAKE if name in ("moby", "densecl", "swav", "ibot", "moby_regions")])
def test_what_it_remembers_is_in_its_state(name):
    """Another objective with the same state gives the same loss, and without it another one."""
    torch.manual_seed(0)
    step = PretrainingStep(toys.backbone(), MAKE[name](), freeze_prototypes_epochs=0).double()
    for number in range(3):
        step(batch(name, number), Progress(number, 9)).total.backward()
        step.finish(Progress(number, 9))

    def loss(objective):
        step.objective = objective.double()
        return step(batch(name, 5), Progress(3, 9)).total.item()

    remembered = step.objective.state_dict()
    mine, fresh, other = loss(step.objective), MAKE[name]().double(), MAKE[name]().double()
    other.load_state_dict(remembered)
    other.reset()
    assert loss(fresh) != pytest.approx(mine, abs=1e-6)
    assert loss(other) == mine


@pytest.mark.parametrize("name", [name for name in MAKE if "regions" not in name])
def test_settings_are_plain_and_make_it_again(name):
    objective = MAKE[name]()
    settings = {key: value for key, value in objective.spec.items() if key != "name"}
    assert type(objective)(**settings).spec == objective.spec


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MoCoV3Objective(temp=0), "MoCoV3Objective needs a positive temp, got 0"),
        (lambda: MoBYObjective(queue_length=0), "MoBYObjective needs a positive queue_length, got 0"),
        (lambda: SwAVObjective(queue_length=-1), "SwAVObjective needs queue_length of 0 or more, got -1"),
        (lambda: DenseCLObjective(dense_weight=1.5), "needs dense_weight between 0 and 1, got 1.5"),
        (lambda: MPPObjective(hidden_share=0.8, swapped_share=0.3), "1 at most together, got 0.8 and 0.3"),
        (lambda: IBOTObjective(mask_start_epoch=-1), "mask_start_epoch of 0 or later, got -1"),
        (lambda: IBOTObjective().heads(8, 16), "cannot share a head; set loss.shared_head=false"),
        (lambda: SwAVObjective(queue_length=8).check(3), "queue_start_epoch=15 lies at or after the end of training"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The region loss beside another view loss


@pytest.mark.parametrize("name", ["byol", "moby", "swav"])
def test_the_region_loss_beside_another_view_loss_is_the_sum_of_both(name):
    joined = WithRegionsObjective(
        MAKE[name](), view_weight=2.0, region_weight=0.5, num_prototypes=12, hidden_dim=16, out_dim=8
    )
    torch.manual_seed(0)
    step = PretrainingStep(toys.backbone(), joined).double()
    student, teacher = step.student(batch(name, 0)["views"]), step.teacher(batch(name, 0)["views"][:2])
    both = joined(student, teacher, batch(name, 0), NOW)
    view, region = (part(student, teacher, batch(name, 0), NOW) for part in joined.parts)
    assert both.total.item() == pytest.approx(2 * view.total.item() + 0.5 * region.total.item())
    assert set(both.terms) == {*view.terms, "region"}
    assert joined.schedules(NOW).keys() >= {"teacher_temp"}
    assert joined.head_rows == MAKE[name]().head_rows


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ibot", "IBOTObjective hides patches from the student, and a region that it does not see matches none"),
        ("simmim", "SimMIMObjective hides patches"),
        ("densecl", "DenseCLObjective has a loss of regions of its own; use a view loss without one .view=byol"),
    ],
)
def test_methods_that_do_not_go_with_a_region_loss_say_why(name, message):
    with pytest.raises(ValueError, match=message):
        WithRegionsObjective(MAKE[name]())


@pytest.mark.parametrize("name", ["simclr", "densecl"])
def test_methods_of_two_views_refuse_more(name):
    step = PretrainingStep(toys.backbone(), MAKE[name]())
    three = {"views": [torch.randn(2, 3, 32, 32) for _ in range(3)]}
    with pytest.raises(ValueError, match=r"compares two views of an image, got 3; .*augment=global_only"):
        step(three, NOW)


def test_a_queue_shorter_than_the_batch_is_refused():
    objective = MoBYObjective(queue_length=BATCH - 1, out_dim=2)
    objective(views(prediction=[torch.randn(BATCH, 2)] * 2), views(projection=[torch.randn(BATCH, 2)] * 2), {}, NOW)
    with pytest.raises(ValueError, match=r"loss.queue_length\) holds 7, and one step brings 8: make it a multiple"):
        objective.commit(objective.collect())


@pytest.mark.parametrize("name", ["mocov3", "moby", "byol"])
def test_the_momentum_is_that_of_the_authors_step(name):
    """MoCo v3 and MoBY move the teacher before a step, so after step k it has the momentum of step k + 1."""
    step = PretrainingStep(toys.backbone(), MAKE[name](), momentum=0.5, momentum_end=1.0, momentum_schedule="linear")
    at = Progress(3, 10)
    assert step.momentum_at(at) == pytest.approx(0.65 if name == "byol" else 0.7)


def test_moco_v3_leaves_the_patch_embedding_as_it_was_drawn():
    from esvit_pl.backbones import build

    swin = PretrainingStep(toys.backbone(), MAKE["mocov3"]()).student.backbone
    assert not swin.patch_embed.proj.weight.requires_grad
    assert swin.patch_embed.norm.weight.requires_grad
    vit = build("vit_small_patch16_224", depth=1, embed_dim=24, num_heads=2)
    drawn = vit.model.patch_embed.proj.weight.clone()
    PretrainingStep(vit, MAKE["mocov3"]())
    still = {name for name, p in vit.named_parameters() if not p.requires_grad}
    assert {"model.patch_embed.proj.weight", "model.patch_embed.proj.bias", "model.pos_embed"} <= still
    assert torch.equal(vit.model.patch_embed.proj.weight, drawn)
    table = vit.model.pos_embed[0]
    assert not table[0].any()  # the class token's
    assert table[1:].abs().max() == 1
    assert len(table[1:].unique(dim=0)) == 196
