from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import toys
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from esvit_pl.callbacks.collapse_monitor import CollapseMonitor
from esvit_pl.distributed import gather_over_ranks, rank
from esvit_pl.metrics import effective_rank, feature_spread, region_diversity

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
]
K = 16
POINTS = torch.randn(96, 8, generator=torch.Generator().manual_seed(1))


class Dino(pl.LightningModule):
    """Self-distillation of points that knows nothing of us. Noise makes the views.

    Nothing but `requires_grad` keeps gradients out of the teacher. So a teacher that *is* the student learns too, and
    the quickest way to agree with oneself is to say the same of everything.
    """

    def __init__(self, *, shared: bool = False, teacher_temp: float = 0.04) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.ModuleDict(
            {
                "body": nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 16)),
                "head": nn.Linear(16, K, bias=False),
            }
        )
        self.teacher = self.student if shared else copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("center", torch.zeros(K))
        self.shared, self.teacher_temp = shared, teacher_temp

    def distil(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, entropy of the teacher, its embedding (b 16))"""
        first, second = (points + 0.5 * torch.randn_like(points) for _ in range(2))
        embedding = self.teacher["body"](first)
        logits = self.teacher["head"](F.normalize(embedding, dim=1))
        q = ((logits - self.center) / self.teacher_temp).softmax(-1)
        self.center = 0.9 * self.center + 0.1 * logits.mean(0).detach()
        log_p = (self.student["head"](F.normalize(self.student["body"](second), dim=1)) / 0.1).log_softmax(-1)
        return -(q * log_p).sum(-1).mean(), torch.special.entr(q).sum(-1).mean().detach(), embedding.detach()

    def training_step(self, points: Tensor, batch_idx: int) -> Any:
        loss, entropy, embedding = self.distil(points)
        diagnostics = {"teacher_entropy_share": entropy / math.log(K), "kl": loss.detach() - entropy}
        return {"loss": loss, "embedding": embedding, "diagnostics": diagnostics}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.shared:
            with torch.no_grad():
                for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    t.lerp_(s, 0.1)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.student.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(POINTS, batch_size=16, shuffle=True)


class ReturnsScalar(Dino):
    def training_step(self, points: Tensor, batch_idx: int) -> Any:
        return super().training_step(points, batch_idx)["loss"]


class TwoOptimizersByHand(Dino):
    automatic_optimization = False

    def training_step(self, points: Tensor, batch_idx: int) -> Any:
        outputs = super().training_step(points, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(outputs["loss"])
        for optimizer in self.optimizers():
            optimizer.step()
        return outputs

    def configure_optimizers(self) -> Any:
        body, head = self.student["body"], self.student["head"]
        return [torch.optim.SGD(body.parameters(), lr=0.1), torch.optim.Adam(head.parameters())]


class ReturnsNothingByHand(TwoOptimizersByHand):
    def training_step(self, points: Tensor, batch_idx: int) -> None:
        super().training_step(points, batch_idx)


def fit(module: pl.LightningModule, root: Any, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    torch.manual_seed(5)
    trainer = toys.trainer(root, callbacks=list(callbacks), **options)
    trainer.fit(module)
    return trainer


def latest(trainer: pl.Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("health/")}


# Alarms


@pytest.mark.fault(
    "loss: the training collapses (all images get the same answer)",
    "a warning that names the measure, its bounds and likely causes; `callbacks.collapse.stop=true` ends the training",
)
def test_a_teacher_that_is_the_student_is_noticed_and_can_stop_the_training(tmp_path) -> None:
    monitor = CollapseMonitor(every_n_steps=4, window=2, stop=True)
    with pytest.warns(UserWarning, match="CollapseMonitor") as said:
        trainer = fit(Dino(shared=True), tmp_path, monitor, max_epochs=30)
    texts = [str(warning.message) for warning in said]
    assert any("health/feature_spread = " in text and "shares its weights with the student" in text for text in texts)
    assert "stops the training after 3 alarms in a row" in texts[-1]
    assert trainer.should_stop
    assert trainer.current_epoch < 25
    assert latest(trainer)["health/alarm"] == 1
    assert latest(trainer)["health/feature_spread"] < 0.05


def test_a_teacher_temperature_too_high_is_noticed_and_said_once(tmp_path) -> None:
    with pytest.warns(UserWarning, match="CollapseMonitor") as said:
        trainer = fit(Dino(teacher_temp=1.0), tmp_path, CollapseMonitor(every_n_steps=2, window=2), max_epochs=4)
    texts = [str(warning.message) for warning in said]
    about = [text for text in texts if "health/teacher_entropy_share = " in text]
    assert len(about) == 1
    assert "a teacher temperature too high" in about[0]
    assert trainer.current_epoch == 4
    assert latest(trainer)["health/alarm"] == 1


@pytest.mark.parametrize("kind", [Dino, TwoOptimizersByHand])
def test_the_healthy_one_of_the_same_module_is_quiet(tmp_path, kind) -> None:
    """A warning would be an error here."""
    trainer = fit(kind(), tmp_path, CollapseMonitor(every_n_steps=2, window=2, stop=True), max_epochs=12)
    assert trainer.current_epoch == 12
    metrics = latest(trainer)
    assert metrics["health/alarm"] == 0
    assert metrics["health/feature_spread"] > 0.2
    assert set(metrics) == {
        f"health/{name}" for name in ("feature_spread", "effective_rank", "teacher_entropy_share", "kl", "alarm")
    }


def test_nothing_is_judged_before_the_start_or_before_the_window_is_full(tmp_path) -> None:
    unhealthy = Dino(teacher_temp=1.0)
    fit(unhealthy, tmp_path, CollapseMonitor(every_n_steps=2, window=2, start_epoch=3.0), max_epochs=2)
    fit(unhealthy, tmp_path, CollapseMonitor(every_n_steps=2, window=8, start_epoch=0), max_epochs=2)
    with pytest.warns(UserWarning, match="epoch 1:"):
        fit(unhealthy, tmp_path, CollapseMonitor(every_n_steps=2, window=2, start_epoch=1.5), max_epochs=3)


def test_one_odd_batch_does_not_alarm_and_a_recovery_is_noticed() -> None:
    monitor = CollapseMonitor(window=4)
    for spread in (0.5, 0.5, 0.0, 0.5):
        monitor._remember({"feature_spread": spread})
    assert monitor.judge() == {}
    for _ in range(4):
        monitor._remember({"feature_spread": 0.0})
    assert list(monitor.judge()) == ["feature_spread"]
    for _ in range(4):
        monitor._remember({"feature_spread": 0.5})
    assert monitor.judge() == {}


def test_thresholds_for_all_heads_for_one_and_for_none() -> None:
    def alarms(**thresholds: Any) -> list[str]:
        monitor = CollapseMonitor(window=1, thresholds=thresholds)
        monitor._remember({"view_kl": 0.5, "region_kl": 0.5, "feature_spread": math.nan})
        return list(monitor.judge())

    assert alarms() == ["feature_spread"]
    assert alarms(feature_spread=None, kl=(1.0, None)) == ["view_kl", "region_kl"]
    assert alarms(feature_spread=None, kl=(1.0, None), view_kl=[None, 0.6]) == ["region_kl"]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["view", "view_region"])
def test_the_embedded_run_is_quiet(tmp_path, loss) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    words = ["experiment=embedded", f"loss={loss}", "evaluation.probes=[]", "trainer.max_epochs=2"]
    words += ["callbacks=collapse", f"callbacks.collapse._target_={CollapseMonitor.__module__}.CollapseMonitor"]
    command = [sys.executable, "-m", "esvit_pl.commands.pretrain", *words, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=1800, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert metrics["health/alarm"] == 0
    assert 0.2 < metrics["health/feature_spread"] < 1
    assert metrics["health/view_kl"] > 0.2
    assert metrics["health/region_diversity"] > 0.2


# What it reads


def test_logs_what_the_pure_functions_say_of_the_embedding(tmp_path) -> None:
    seen: list[Tensor] = []

    class Keeps(Dino):
        def training_step(self, points: Tensor, batch_idx: int) -> Any:
            outputs = super().training_step(points, batch_idx)
            seen.append(outputs["embedding"])
            return outputs

    trainer = fit(Keeps(), tmp_path, CollapseMonitor(every_n_steps=4, window=2, start_epoch=0), max_epochs=2)
    assert len(seen) == 12
    last_two = [seen[7], seen[11]]  # the eighth and the twelfth step
    metrics = latest(trainer)
    assert metrics["health/feature_spread"] == pytest.approx(sum(map(feature_spread, last_two)).item() / 2)
    assert metrics["health/effective_rank"] == pytest.approx(sum(map(effective_rank, last_two)).item() / 2)


@pytest.mark.parametrize("kind", [ReturnsScalar, ReturnsNothingByHand])
def test_a_step_that_returns_nothing_of_use_is_read_at_a_submodule(tmp_path, capsys, kind) -> None:
    def run(module: Dino, monitor: CollapseMonitor) -> float:
        return latest(fit(module, tmp_path, monitor, max_epochs=1))["health/feature_spread"]

    told = run(TwoOptimizersByHand() if kind is ReturnsNothingByHand else Dino(), CollapseMonitor())
    capsys.readouterr()
    module = kind()
    assert run(module, CollapseMonitor("teacher.body")) == told
    assert not module.teacher["body"]._forward_hooks
    said = capsys.readouterr().out
    assert said.startswith("CollapseMonitor watches feature_spread, effective_rank; it misses region_diversity: ")
    assert "training_step returns no 'regions' (b, regions, channels)" in said
    assert "teacher_entropy_share, kl, matched_share, chance_share: training_step returns none in 'diag" in said
    assert said.count("CollapseMonitor") == 1


def test_the_first_output_of_a_step_counts(tmp_path) -> None:
    # Shared, so that the student's view goes through the same network after the teacher's.
    monitors = CollapseMonitor("teacher.body", prefix="a"), CollapseMonitor(prefix="b")
    metrics = fit(Dino(shared=True), tmp_path, *monitors, max_epochs=1).callback_metrics
    assert metrics["a/feature_spread"] == metrics["b/feature_spread"]


def test_a_function_of_the_outputs(tmp_path) -> None:
    monitor = CollapseMonitor(lambda outputs: outputs["embedding"][:, :1])
    trainer = fit(Dino(), tmp_path, monitor, max_epochs=1)
    assert latest(trainer)["health/effective_rank"] == pytest.approx(1)


def test_a_step_without_anything_to_watch_is_a_warning(tmp_path) -> None:
    with pytest.warns(UserWarning, match=r"watches nothing; it misses feature_spread, .* returns no 'embedding'"):
        fit(ReturnsScalar(), tmp_path, CollapseMonitor(), max_epochs=1)


@pytest.mark.parametrize("loss", [{"region_weight": 0.0}, {}], ids=["view", "view_region"])
def test_the_pretrainer_misses_nothing(tmp_path, capsys, loss) -> None:
    """A loss without regions matches none, and nobody misses it."""
    trainer = toys.trainer(tmp_path, callbacks=[CollapseMonitor()], max_epochs=1)
    trainer.fit(toys.pretrainer(loss), toys.loader(16, 8))
    assert "CollapseMonitor" not in capsys.readouterr().out
    if loss:
        return
    heads = [f"{head}_{name}" for head in ("view", "region") for name in ("teacher_entropy_share", "kl", "center_norm")]
    others = ["feature_spread", "effective_rank", "region_diversity", "matched_share", "alarm"]
    assert set(latest(trainer)) == {f"health/{name}" for name in heads + others}


# What it leaves alone


@pytest.mark.parametrize("kind", [Dino, ReturnsScalar, TwoOptimizersByHand, ReturnsNothingByHand])
def test_a_foreign_training_is_the_same_to_the_last_bit_with_and_without(tmp_path, kind) -> None:
    def run(*callbacks: pl.Callback) -> tuple:
        module = kind()
        trainer = fit(module, tmp_path, *callbacks)
        return toys.state(module), trainer.global_step, torch.rand(2).tolist()

    state, *rest = run(CollapseMonitor("teacher.body", every_n_steps=1, window=1, start_epoch=0))
    plain_state, *plain_rest = run()
    assert toys.largest_difference(state, plain_state) == 0
    assert rest == plain_rest


def test_saved_early_stopped_and_resumed(tmp_path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="best", monitor="health/feature_spread", mode="max")
    stopper = EarlyStopping("health/alarm", mode="min", patience=1, check_on_train_epoch_end=True)
    options: dict[str, Any] = {"every_n_steps": 4, "window": 2}
    module = Dino(teacher_temp=1.0)
    with pytest.warns(UserWarning, match="teacher_entropy_share"):
        trainer = fit(module, tmp_path, CollapseMonitor(**options), stopper, saver, enable_checkpointing=True)
    assert trainer.current_epoch == 2
    checkpoint = torch.load(saver.best_model_path, weights_only=True)
    assert set(checkpoint["state_dict"]) == set(Dino().state_dict())
    saved = checkpoint["callbacks"]["CollapseMonitor[health]"]
    assert saved["steps"] == 6 * (checkpoint["epoch"] + 1)
    assert sum(saved["recent"]["kl"]) / len(saved["recent"]["kl"]) > 0
    again = CollapseMonitor(**options)
    again.load_state_dict(saved)
    assert again.state_dict() == saved


def test_in_a_lightning_trainer(tmp_path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Theirs(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Linear(8, 3)

        def training_step(self, points: Tensor, batch_idx: int) -> Tensor:
            return self.trunk(points).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=1, callbacks=[CollapseMonitor("trunk")], default_root_dir=tmp_path, **quiet)
    trainer.fit(Theirs(), DataLoader(POINTS, batch_size=16))
    assert 0 < trainer.callback_metrics["health/feature_spread"] <= 2
    assert trainer.callback_metrics["health/alarm"] == 0


# Two processes


class OneRankIsIll(Dino):
    """The entropy share is 1 on rank 0 and 0.97 on rank 1: only the mean is above 0.98."""

    def training_step(self, points: Tensor, batch_idx: int) -> Any:
        outputs = super().training_step(points, batch_idx)
        outputs["diagnostics"]["teacher_entropy_share"] = 1.0 - 0.03 * rank()
        return outputs

    def on_train_end(self) -> None:
        (monitor,) = (callback for callback in self.trainer.callbacks if isinstance(callback, CollapseMonitor))
        mine = torch.tensor([*monitor.means().values(), monitor._steps, self.trainer.global_step])
        assert torch.equal(*gather_over_ranks(mine[None]))
        assert monitor.means()["teacher_entropy_share"] == pytest.approx(0.985)
        assert monitor._steps == 5  # an epoch of 3 steps without judgement, and 2 of patience
        # The images of both ranks count as those of one batch, however few a rank has.
        rows = slice(16, 17) if rank() else slice(0, 16)
        regions = POINTS[:51].view(17, 3, -1)
        together = monitor.measure({"embedding": POINTS[rows], "regions": regions[rows]}, self.device)
        assert together["feature_spread"] == pytest.approx(feature_spread(POINTS[:17]).item())
        assert together["region_diversity"] == pytest.approx(region_diversity(regions).item())
        Path(self.trainer.default_root_dir, f"rank{rank()}").touch()


def test_two_processes_come_to_one_decision(tmp_path) -> None:
    monitor = CollapseMonitor(every_n_steps=1, window=1, start_epoch=1.0, stop=True, patience=2)
    options: dict[str, Any] = {"strategy": "ddp_spawn", "devices": 2, "use_distributed_sampler": True}
    trainer = toys.trainer(tmp_path, callbacks=[monitor], max_epochs=5, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(OneRankIsIll())
    assert sorted(path.name for path in tmp_path.glob("rank*")) == ["rank0", "rank1"]  # both came to the end


# Mistakes


def test_mistakes_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="needs every_n_steps of 1 or more, got 0"):
        CollapseMonitor(every_n_steps=0)
    with pytest.raises(ValueError, match=r"has no measure thresholds.entropy; give feature_spread, "):
        CollapseMonitor(thresholds={"entropy": (0, 1)})
    with pytest.raises(ValueError, match=r"thresholds.kl as \(low, high\), None for no bound, got \[0.1\]"):
        CollapseMonitor(thresholds={"kl": [0.1]})
    with pytest.raises(ValueError, match=r"CollapseMonitor looks for embedding='teacher.trunk'.* it has body, head"):
        fit(Dino(), tmp_path, CollapseMonitor("teacher.trunk"))
    with pytest.raises(ValueError, match="needs a network at embedding='distil', found method"):
        fit(Dino(), tmp_path, CollapseMonitor("distil"))
