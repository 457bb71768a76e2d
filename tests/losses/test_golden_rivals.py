"""Losses, heads and memories of the rivals against values of the authors' own functions, in float64."""

from __future__ import annotations

import golden_files
import pytest
import torch
from torch import Tensor

from esvit_pl.objectives import (
    BYOLObjective,
    DenseCLObjective,
    MoBYObjective,
    MoCoV3Objective,
    Progress,
    SimCLRObjective,
    SwAVObjective,
    Views,
)

pytestmark = pytest.mark.golden
NOW = Progress(0, 1)


def files(prefix: str):
    return pytest.mark.parametrize("path", golden_files.paths(prefix), ids=lambda path: path.stem)


def leaves(tensors: dict[str, Tensor], name: str) -> list[Tensor]:
    """`name.0`, `name.1`, ... as tensors that ask for a gradient."""
    found = []
    while (key := f"{name}.{len(found)}") in tensors:
        found.append(tensors[key].clone().requires_grad_())
    return found


def views(**z: list[Tensor]) -> Views:
    return Views(pooled=next(iter(z.values())), regions=[], grids=[], z=dict(z))


def check_loss(losses, tensors: dict[str, Tensor], inputs: list[Tensor]) -> None:
    """The total and its gradients `grad.0`, `grad.1`, ... are those of the file."""
    losses.total.backward()
    assert losses.total.item() == pytest.approx(tensors["loss"].item(), abs=1e-6)
    for number, x in enumerate(inputs):
        assert golden_files.largest_error(x.grad, tensors[f"grad.{number}"]) < 1e-6


@files("rival_mocov3_loss")
def test_moco_v3(path):
    golden = golden_files.read(path)
    predictions, keys = (leaves(golden.tensors, name) for name in ("prediction", "key"))
    objective = MoCoV3Objective(temp=golden.settings["temperature"])
    losses = objective(views(prediction=predictions), views(projection=[k.detach() for k in keys]), {}, NOW)
    check_loss(losses, golden.tensors, predictions)


@files("rival_byol_loss")
def test_byol(path):
    golden = golden_files.read(path)
    predictions, targets = (leaves(golden.tensors, name) for name in ("prediction", "target"))
    losses = BYOLObjective()(views(prediction=predictions), views(projection=[t.detach() for t in targets]), {}, NOW)
    check_loss(losses, golden.tensors, predictions)


@files("rival_simclr_loss")
def test_simclr_is_the_sum_of_both_directions(path):
    golden = golden_files.read(path)
    z = leaves(golden.tensors, "projection")
    losses = SimCLRObjective(temp=golden.settings["temperature"])(views(projection=z), None, {}, NOW)
    (losses.total / 2).backward()  # the file's gradients are those of the mean
    assert losses.total.item() == pytest.approx(golden.tensors["loss_as_released"].item(), abs=1e-6)
    for number, x in enumerate(z):
        assert golden_files.largest_error(x.grad, golden.tensors[f"grad.{number}"]) < 1e-6


@files("rival_moby_loss")
def test_moby_and_its_queues(path):
    golden = golden_files.read(path)
    dim = golden.tensors["queue.0.before"].shape[1]
    objective = MoBYObjective(temp=golden.settings["temperature"], queue_length=golden.settings["queue"], out_dim=dim)
    objective.double().queue.keys.copy_(torch.stack([golden.tensors[f"queue.{n}.before"] for n in (0, 1)]))
    calls = sorted({int(key.split(".")[0]) for key in golden.tensors if key[0].isdigit()})
    for call in calls:
        tensors = golden.part(str(call))
        predictions, keys = leaves(tensors, "prediction"), leaves(tensors, "key")
        teacher = views(projection=[k.detach() for k in keys])
        check_loss(objective(views(prediction=predictions), teacher, {}, NOW), tensors, predictions)
        objective.commit(objective.collect())
        for number, queue in enumerate(objective.queue.keys):
            assert golden_files.largest_error(queue, tensors[f"queue.{number}"]) < 1e-6


@files("rival_densecl_loss")
def test_densecl_and_its_queues(path):
    golden = golden_files.read(path)
    s, dim = golden.settings, golden.tensors["queue.global.before"].shape[1]
    objective = DenseCLObjective(
        temp=s["temperature"], queue_length=s["queue"], dense_weight=s["dense_weight"], out_dim=dim
    ).double()
    objective.queue.keys.copy_(torch.stack([golden.tensors[f"queue.{name}.before"] for name in ("global", "dense")]))
    calls = sorted({int(key.split(".")[0]) for key in golden.tensors if key[0].isdigit()})
    for call in calls:
        t = golden.part(str(call))
        query, grid = t["query"].clone().requires_grad_(), t["query_grid"].clone().requires_grad_()
        none = torch.zeros(0)
        student, teacher = (
            Views(pooled=[none, none], regions=regions, grids=[], z={"image": image, "region": region})
            for image, region, regions in (
                ([query, none], [grid, none], [t["query_features"], none]),
                ([none, t["key"]], [none, t["key_grid"]], [none, t["key_features"]]),
            )
        )
        losses = objective(student, teacher, {}, NOW)
        losses.total.backward()
        assert losses.total.item() == pytest.approx(t["loss"].item(), abs=1e-6)
        assert losses.terms["contrast"].item() == pytest.approx(t["single"].item(), abs=1e-6)
        assert losses.terms["dense"].item() == pytest.approx(t["dense"].item(), abs=1e-6)
        assert golden_files.largest_error(query.grad, t["grad.query"]) < 1e-6
        assert golden_files.largest_error(grid.grad, t["grad.query_grid"]) < 1e-6
        objective.commit(objective.collect())
        for number, name in enumerate(("global", "dense")):
            assert golden_files.largest_error(objective.queue.keys[number], t[f"queue.{name}"]) < 1e-6


@files("rival_swav_loss")
def test_swav_its_codes_and_its_queue(path):
    golden = golden_files.read(path)
    s, t = golden.settings, golden.tensors
    embedding, prototypes = t["embedding"].clone().requires_grad_(), t["prototypes"].clone().requires_grad_()
    k, dim = prototypes.shape
    queue = t.get("queue.before", torch.zeros(2, 0, dim))
    objective = SwAVObjective(
        num_prototypes=k,
        out_dim=dim,
        temp=s["temperature"],
        sharpness=s["epsilon"],
        iterations=s["iterations"],
        queue_length=queue.shape[1],
        queue_start_epoch=0,
    ).double()
    objective.queue.copy_(queue)
    objective.filled.fill_(queue.shape[1])
    objective.reset()
    z = list(torch.nn.functional.normalize(embedding, dim=-1).chunk(s["views"]))
    student = views(projection=z)
    student.prototypes["projection"] = prototypes
    losses = objective(student, None, {}, NOW)
    losses.total.backward()
    assert losses.total.item() == pytest.approx(t["loss"].item(), abs=1e-6)
    assert golden_files.largest_error(embedding.grad, t["grad.embedding"]) < 1e-6
    assert golden_files.largest_error(prototypes.grad, t["grad.prototypes"]) < 1e-6
    codes = objective.codes(torch.stack([view @ prototypes.T for view in z[:2]]).detach(), prototypes.detach())
    for number, code in enumerate(codes):
        assert golden_files.largest_error(code, t[f"assignment.{number}"]) < 1e-6
    if "queue.after" in t:
        objective.commit(objective.collect())
        assert golden_files.largest_error(objective.queue, t["queue.after"]) < 1e-6


def heads(name: str, hidden: int, width: int, out: int) -> torch.nn.Module:
    """The head of an objective that the file calls `name`. A predictor is as wide at both ends."""
    if name == "moby":
        return MoBYObjective(hidden_dim=hidden, out_dim=out, queue_length=1).heads(width, width)["projection"]
    resnet = name.endswith("resnet")
    layers, norm = (2, False) if resnet else (3, True)
    objective = MoCoV3Objective(hidden_dim=hidden, out_dim=out, projector_layers=layers, predictor_norm=norm)
    if name.startswith("projector"):
        return objective.heads(width, width)["projection"]
    wide = MoCoV3Objective(hidden_dim=hidden, out_dim=out, predictor_norm=norm).student_only_heads()["prediction"]
    if width != out:  # the file's predictors read other widths than they give
        wide.mlp[0] = torch.nn.Linear(width, hidden, bias=False)
    return wide


@pytest.mark.parametrize("name", ["projector_vit", "projector_resnet", "predictor_vit", "predictor_resnet", "moby"])
@files("rival_mlps")
def test_heads_are_the_authors(path, name):
    golden = golden_files.read(path)
    weights = golden_files.to_mlp(golden.part(f"{name}.w"))
    x, y = golden.tensors[f"{name}.x"], golden.tensors[f"{name}.y"]
    head = heads(name, golden.settings["hidden"], x.shape[1], y.shape[1]).double().train()
    assert weights.keys() == {key for key, _ in head.named_parameters()}
    head.load_state_dict(weights, strict=False)  # running statistics play no part in training mode
    assert golden_files.largest_error(head(x), y) < 1e-6
