"""module.compile and module.grad_checkpointing: the same training, faster or leaner."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import toys
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader, TensorDataset

from esvit_pl.backbones import build
from esvit_pl.callbacks import OnlineKNN
from esvit_pl.modules.pretrain import Pretrainer
from esvit_pl.optim import OptimizerRecipe

STOCHASTIC = {"drop_path_rate": 0.5}


def fit(module: Pretrainer, path: Any, **options: Any) -> dict[str, torch.Tensor]:
    trainer = toys.trainer(path, **options)
    trainer.fit(module, toys.loader(16, 8 // trainer.world_size), ckpt_path=None, weights_only=True)
    return toys.state(module)


def same(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)


def pretrainer(family: str = "swin", lr: float = 0.05, **overrides: Any) -> Pretrainer:
    torch.manual_seed(0)
    network = build(family, **toys.FAMILIES[family], **STOCHASTIC)
    return Pretrainer(network, toys.objective(), OptimizerRecipe(lr=lr, warmup_epochs=1), **overrides)


# Blocks that are computed again


@pytest.mark.parametrize("family", ["swin", "cvt"])
def test_a_training_that_recomputes_is_the_same_to_the_last_bit(tmp_path, family):
    plain, recomputing = pretrainer(family), pretrainer(family, grad_checkpointing=True)
    assert same(fit(plain, tmp_path), fit(recomputing, tmp_path))
    assert not same(toys.state(plain), toys.state(pretrainer(family)))  # it did move


def test_the_student_recomputes_and_the_teacher_does_not():
    module = pretrainer(grad_checkpointing=True)
    blocks = [
        [getattr(m, "grad_checkpointing", None) for m in net.modules()] for net in (module.student, module.teacher)
    ]
    assert [block.count(True) for block in blocks] == [3, 0]


@pytest.mark.slow
def test_two_processes_recompute_to_the_last_bit(tmp_path):
    states = [
        fit(pretrainer("swin", grad_checkpointing=on), tmp_path, strategy="ddp_spawn", devices=2)
        for on in (False, True)
    ]
    assert same(*states)


def test_a_backbone_that_cannot_recompute_is_refused_when_the_module_is_made():
    with pytest.raises(ValueError, match="vgg11 cannot compute blocks again in backward"):
        Pretrainer(build("vgg11", img_size=64), toys.objective(), OptimizerRecipe(), grad_checkpointing=True)


# Compiled graphs


@pytest.fixture
def traced(monkeypatch):
    """Graphs as torch.compile finds them, run as they are: no compiler, and equal to the last bit."""
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, *, options=None, **how: real(function, backend="eager", **how)
    )
    monkeypatch.setattr("esvit_pl.compiling.check_compiler", lambda device: None)  # a graph too
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def probe() -> OnlineKNN:
    """Batches of three sizes, none of them the training's."""
    images = TensorDataset(torch.randn(11, 3, 32, 32), torch.arange(11) % 3)
    return OnlineKNN(bank=DataLoader(images, batch_size=5), query=DataLoader(images, batch_size=4), k=3)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:Found 1 module.* in eval mode")
def test_one_graph_for_the_student_and_one_for_the_teacher_whatever_probes_do(tmp_path, traced):
    plain, compiled = pretrainer(), pretrainer(compile=True)
    assert same(fit(plain, tmp_path), fit(compiled, tmp_path, callbacks=[probe()]))
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    copy, other = (deepcopy(module.student).eval() for module in (compiled, plain))
    views = [torch.randn(2, 3, side, side) for side in (20, 12)]
    assert torch.equal(copy(views).pooled[1], other(views).pooled[1])
    assert counters["stats"]["unique_graphs"] == 2  # copies are not compiled


def test_vil_with_random_chunks_is_refused_and_fixed_ones_make_one_graph(traced):
    sizes = {**toys.FAMILIES["vil"], **STOCHASTIC}
    with pytest.raises(ValueError, match=r"ViL with mode=1 draws anew .*set backbone\.mode=0"):
        Pretrainer(build("vil", **sizes), toys.objective(), OptimizerRecipe(), compile=True)
    module = Pretrainer(build("vil", **sizes, mode=0), toys.objective(), OptimizerRecipe(), compile=True)
    views = [torch.randn(2, 3, side, side) for side in (32, 17)]
    torch.manual_seed(0)
    wanted = module.student(views).pooled
    module.student.compile(fullgraph=True, dynamic=False)
    torch.manual_seed(0)
    assert all(map(torch.equal, module.student(views).pooled, wanted))
    assert counters["stats"]["unique_graphs"] == 1


class Losses(Callback):
    """View and region loss of every step."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.seen.append([trainer.callback_metrics[f"train/{term}_loss"].item() for term in ("view", "region")])


# At 0.05 four steps make 5 % of what bfloat16 rounds away, compiled or not.
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "lr", "tolerance"), [("32-true", 0.05, 1e-5), ("bf16-mixed", 0.005, 1e-2)])
def test_inductors_training_is_the_same_up_to_rounding_and_continues_uncompiled(tmp_path, precision, lr, tolerance):
    torch._dynamo.reset()
    losses = Losses(), Losses()
    for compiled in (False, True):
        module = pretrainer(lr=lr, compile=compiled, grad_checkpointing=compiled)
        trainer = toys.trainer(
            tmp_path,
            precision=precision,
            enable_checkpointing=True,
            callbacks=[ModelCheckpoint(tmp_path / str(compiled), save_last=True, filename="{epoch}"), losses[compiled]],
        )
        trainer.fit(module, toys.loader(16, 8), weights_only=True)
    eager, mine = (torch.tensor(form.seen) for form in losses)
    assert eager.shape == (4, 2)
    assert torch.allclose(mine, eager, rtol=tolerance, atol=0)
    for compiled in (False, True):  # each goes on with the other's checkpoint
        module = pretrainer(compile=compiled)
        trainer = toys.trainer(tmp_path, precision=precision, max_epochs=3)
        path = tmp_path / str(not compiled) / "last.ckpt"
        trainer.fit(module, toys.loader(16, 8), ckpt_path=path, weights_only=True)
        assert trainer.global_step == 6


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_two_compiled_processes_are_two_uncompiled_ones_up_to_rounding(tmp_path, recompute):
    """Graphs are cut where DDP's buckets end."""
    plain, compiled = (
        fit(
            pretrainer("cvt", compile=on, grad_checkpointing=on and recompute),
            tmp_path,
            strategy="ddp_spawn",
            devices=2,
            max_epochs=1,
        )
        for on in (False, True)
    )
    assert toys.largest_difference(plain, compiled) < 1e-3


@pytest.mark.slow
def test_two_compiled_runs_are_one_to_the_last_bit(tmp_path):
    assert same(*(fit(pretrainer(compile=True), tmp_path) for _ in range(2)))
