"""The table of results: equal probes for every row."""

from __future__ import annotations

import pytest
import torch
import toys
from omegaconf import DictConfig, OmegaConf

from esvit_pl.augment import Recipe
from esvit_pl.commands import evaluation
from esvit_pl.configs import assemble, trainers


def config(**settings) -> DictConfig:
    probes = {
        "knn": {"_target_": "esvit_pl.evaluation.KNN", "k": 3},
        "linear": {"_target_": "esvit_pl.evaluation.Linear", "last_blocks": 2},
    }
    common = {"probes": ["knn", "linear"], **probes}
    return OmegaConf.create({"evaluation": {**common, **settings}, "optimized_metric": None})


@pytest.mark.parametrize("linear", [True, False])
def test_every_row_is_measured_under_one_trainer_on_one_data_module(monkeypatch, linear):
    made = []

    class Data:
        num_classes = 4

    class Trainer:
        def validate(self, module, data, verbose):
            baselines = module.evaluator
            rows = {"pretrained": module.encoder, **baselines.encoders}
            made.append([type(encoder).__name__ for encoder in rows.values()])
            return [{f"{probe}/{row}": 0.5 for probe in baselines.probes for row in rows}]

    def made_once(value):
        made.append(value)
        return value

    monkeypatch.setattr(assemble, "datamodule", lambda *args, **options: made_once(Data))
    monkeypatch.setattr(trainers, "quiet", lambda cfg: made_once(Trainer()))
    recipe = Recipe(normalize="image", eval_resize=32, eval_crop=32)
    cfg = config(probes=["knn", "linear"] if linear else ["knn"])
    table = evaluation.measure(cfg, None, recipe, toys.backbone(), {"untrained": toys.backbone()})  # type: ignore[arg-type]
    rows = ["raw_pixels", "histogram", "untrained", "pretrained"]
    values = {"chance": 0.25, **dict.fromkeys(rows, 0.5)}
    assert table == ({"knn": values, "linear": values} if linear else {"knn": values})
    assert list(table["knn"]) == list(values)
    assert len(made) == 3
    assert made[2] == ["Swin", "RawPixels", "GreyHistogram", "Swin"]
    bare = evaluation.measure(cfg, None, recipe, toys.backbone(), {})  # type: ignore[arg-type]
    assert bare["knn"] == {"pretrained": 0.5}


def test_a_check_leaves_the_backbone_and_the_random_numbers_as_they_were():
    backbone = toys.backbone(drop_path_rate=0.1).train()
    before, state = toys.state(backbone), torch.get_rng_state()
    evaluation.check(config(), backbone, num_classes=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert toys.largest_difference(toys.state(backbone), before) == 0
    assert backbone.training


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"probes": ["knm", "knn"]}, "evaluation.probes holds knm; there are knn and linear"),
        ({"probes": "knn"}, r"evaluation.probes must be a list, such as \[knn,linear\], got knn"),
        (
            {"linear": {"_target_": "esvit_pl.evaluation.Linear", "epochs": 0}},
            "evaluation.linear: a linear probe needs epochs of 1 or more, got 0",
        ),
        (
            {"linear": {"_target_": "esvit_pl.evaluation.Linear"}},
            "evaluation.linear: last_blocks needs n between 1 and",
        ),
        ({"knn": {"_target_": "esvit_pl.evaluation.KNN", "k": 0}}, "evaluation.knn: "),
    ],
)
def test_a_check_refuses_what_would_fail_after_the_training(settings, said):
    with pytest.raises(ValueError, match=said):
        evaluation.check(config(**settings), toys.backbone(), num_classes=3)


def test_probes_that_are_not_asked_for_are_not_looked_at():
    cfg = config(probes=["knn"], linear={"_target_": "esvit_pl.evaluation.Linear", "last_blocks": 9})
    evaluation.check(cfg, toys.backbone(), num_classes=3)


def test_the_metric_to_improve():
    cfg = config()
    assert evaluation.optimized(cfg, {"knn/top1": 0.5}) is None
    cfg.optimized_metric = "knn/top1"
    assert evaluation.optimized(cfg, {"knn/top1": 0.5, "linear/top1": 0.25}) == 0.5
    with pytest.raises(ValueError, match="optimized_metric=knn/top1 was not measured; there are a, b"):
        evaluation.optimized(cfg, {"b": 0.0, "a": 0.0})


def test_the_table_as_text():
    table = {
        "knn": {"chance": 0.05, "histogram": 0.518, "pretrained": 1.0},
        "linear": {"chance": 0.05, "pretrained": 0},
    }
    assert evaluation.as_text(table).splitlines() == [
        "                          k-NN    linear",
        "chance                    5.0%      5.0%",
        "grey-level histogram     51.8%          ",
        "pretrained backbone     100.0%      0.0%",
    ]
    assert evaluation.as_text({"knn": {"pretrained": 0.5}}).splitlines()[1:] == ["pretrained backbone     50.0%"]


def test_a_probe_of_somebody_elses_is_one_class_and_one_yaml(commands, pictures, tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "class Spread:\n"
        "    reads = ('pooled',)\n"
        "    def __init__(self, scale): self.scale = scale\n"
        "    def check(self, encoder, num_classes): assert num_classes == 3\n"
        "    def run(self, encoder, data):\n"
        "        return {'spread': self.scale * float(data.features(encoder, 'query').features.std())}\n"
    )
    (tmp_path / "conf" / "evaluator").mkdir(parents=True)
    (tmp_path / "conf" / "evaluator" / "spread.yaml").write_text("_target_: theirs.Spread\nscale: 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ESVIT_TRUSTED_TARGETS", "theirs.")
    words = ["+evaluator@evaluation.spread=spread", "evaluation.probes=[knn,spread]", "evaluation.baselines=true"]
    words += [f"hydra.searchpath=[file://{tmp_path}/conf]", "evaluation.spread.scale=0.25", "trainer.max_epochs=1"]
    outcome = commands.pretrain(pictures, *words)
    assert outcome.code == 0, outcome.err
    rows = outcome.results["spread"]
    assert (
        list(rows) == list(outcome.results["knn"]) == ["chance", "raw_pixels", "histogram", "untrained", "pretrained"]
    )
    assert len(set(rows.values())) == 5
    assert any(line.split() == ["k-NN", "spread"] for line in outcome.out.splitlines())
