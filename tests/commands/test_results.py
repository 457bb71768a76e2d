"""The table of results: equal probes for every row."""

from __future__ import annotations

import pytest
import torch
import toys
from omegaconf import DictConfig, OmegaConf

from esvit_pl.augment import Recipe
from esvit_pl.commands import evaluation, results
from esvit_pl.configs import assemble, trainers
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.evaluation import KNN, Linear, RankMe


def config(**settings) -> DictConfig:
    probes = {
        "knn": {"_target_": "esvit_pl.evaluation.KNN", "k": 3},
        "linear": {"_target_": "esvit_pl.evaluation.Linear", "last_blocks": 2},
    }
    common = {"probes": ["knn", "linear"], **probes}
    return OmegaConf.create({"evaluation": {**common, **settings}, "optimized_metric": None})


def images(number: int, labelled: bool = True) -> ArrayDataset:
    names = [f"{i}.png" for i in range(number)]
    pixels = torch.zeros(number, 3, 4, 4, dtype=torch.uint8)
    return ArrayDataset(pixels, names, [i % 4 for i in range(number)] if labelled else None)


class Witness:
    """A Trainer that measures nothing: each number is that of its turn, and `asked` says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int, list[str], list[str]]] = []
        self.world_size = self.accumulate_grad_batches = 1

    def validate(self, module, data, verbose):
        asked = module.evaluator
        turn = len(self.asked) + 1
        sizes = len(data.dataset.bank), len(data.dataset.query)
        self.asked.append((*sizes, [*asked.encoders], [*asked.probes], [*asked.alone]))
        names = {"knn": "knn/top1", "linear": "linear/top1", "rankme": "rankme"}
        asked.metrics = {name: names[name] for name in asked.all}
        found = dict.fromkeys(asked.metrics.values(), turn / 10)
        found |= {f"{probe}/pretrained": turn / 10 for probe in asked.all}
        return [found | {f"{probe}/{row}": turn / 10 for probe in asked.probes for row in asked.encoders}]


def measured(monkeypatch, mode, probes, *, labelled=True, at_most=(100, 100), beside=True):
    class Data:
        batch_size, train = 1, "supervised"

        def __init__(self, splits) -> None:
            self.dataset, self.train_images = splits, splits.bank

    trainer = Witness()
    monkeypatch.setattr(assemble, "datamodule", lambda cfg, splits, recipe, **options: Data(splits))
    monkeypatch.setattr(trainers, "quiet", lambda cfg: trainer)
    cfg = config(baselines=mode, baseline_images=list(at_most))
    splits = Splits(images(12, labelled), images(6, labelled))
    others = {"untrained": toys.backbone()} if beside else {}
    found = results.measure(cfg, splits, Recipe(eval_resize=32, eval_crop=32), toys.backbone(), probes, others)
    return trainer.asked, found


ROWS = ["raw_pixels", "histogram", "untrained"]


def test_every_row_of_every_probe_on_all_images(monkeypatch):
    asked, found = measured(monkeypatch, True, {"knn": KNN(k=3), "linear": Linear()}, at_most=(4, 2))
    assert asked == [(12, 6, ROWS, ["knn", "linear"], [])]
    assert list(found.table["knn"]) == ["chance", *ROWS, "pretrained"]
    assert found.table["linear"] == {"chance": 0.25, **dict.fromkeys(ROWS, 0.1), "pretrained": 0.1}
    assert found.metrics == {"knn/top1": 0.1, "linear/top1": 0.1}


def test_by_default_baselines_are_asked_what_is_cheap(monkeypatch):
    probes = {"knn": KNN(k=3), "linear": Linear()}
    asked, found = measured(monkeypatch, "auto", probes)
    assert asked == [(12, 6, ROWS, ["knn"], ["linear"])]
    assert list(found.table["knn"]) == ["chance", *ROWS, "pretrained"]
    assert list(found.table["linear"]) == ["chance", "pretrained"]
    asked, found = measured(monkeypatch, "auto", probes, at_most=(4, 2))
    assert asked == [(12, 6, [], ["knn"], ["linear"]), (4, 2, ROWS, ["knn"], [])]
    rows = {"chance": 0.25, **dict.fromkeys(ROWS, 0.2), "pretrained_subset": 0.2, "pretrained": 0.1}
    assert found.table == {"knn": rows, "linear": {"chance": 0.25, "pretrained": 0.1}}
    (low, high), (few_low, few_high) = (found.intervals["knn"][row] for row in ("pretrained", "pretrained_subset"))
    assert high - low < few_high - few_low  # six images, and two


def test_without_baselines_and_without_labels(monkeypatch):
    asked, found = measured(monkeypatch, False, {"knn": KNN(k=3)}, beside=False)
    assert (asked, found.table) == ([(12, 6, [], ["knn"], [])], {"knn": {"pretrained": 0.1}})
    asked, found = measured(monkeypatch, "auto", {"rankme": RankMe()}, labelled=False, at_most=(4, 2))
    assert asked == [(4, 2, ["untrained"], ["rankme"], [])]
    assert found.table == {"rankme": {"untrained": 0.1, "pretrained": 0.1}}
    assert found.final == {"rankme": 0.1}
    assert found.intervals == {}
    assert found.text().splitlines()[0] == "6 images, no labels"


def test_a_mode_that_does_not_exist(monkeypatch):
    with pytest.raises(ValueError, match="evaluation.baselines must be true, false or auto, got some"):
        measured(monkeypatch, "some", {"knn": KNN(k=3)})


def test_a_check_leaves_the_backbone_and_the_random_numbers_as_they_were():
    backbone = toys.backbone(drop_path_rate=0.1).train()
    before, state = toys.state(backbone), torch.get_rng_state()
    results.check(results.probes_of(config(), labelled=True), backbone, num_classes=3)
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
        (
            {"knn": {"_target_": "esvit_pl.evaluation.KNN", "k": 0}},
            r"k-NN needs k of 1 or more, got evaluation.knn.k=0",
        ),
    ],
)
def test_a_check_refuses_what_would_fail_after_the_training(settings, said):
    with pytest.raises(ValueError, match=said):
        results.check(results.probes_of(config(**settings), labelled=True), toys.backbone(), num_classes=3)


def test_probes_that_are_not_asked_for_are_not_looked_at():
    cfg = config(probes=["knn"], linear={"_target_": "esvit_pl.evaluation.Linear", "last_blocks": 9})
    results.check(results.probes_of(cfg, labelled=True), toys.backbone(), num_classes=3)


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
    assert results.as_text(table).splitlines() == [
        "                          k-NN    linear",
        "chance                    5.0%      5.0%",
        "grey-level histogram     51.8%",
        "pretrained backbone     100.0%      0.0%",
    ]
    ranges = {"knn": {"histogram": [0.25, 0.75], "pretrained": [0.875, 1.0]}}
    assert results.as_text({**table, "rankme": {"pretrained": 12.345}}, {"rankme": "rankme"}, ranges).splitlines() == [
        "                          k-NN                linear    RankMe",
        "chance                    5.0%                  5.0%",
        "grey-level histogram     51.8%   25.0-75.0",
        "pretrained backbone     100.0%  87.5-100.0      0.0%      12.3",
    ]


def test_few_images_are_said():
    def text(query: int) -> list[str]:
        splits = Splits(images(40), images(query))
        return (
            results.Measured({"knn": {"pretrained": 0.5}}, {}, {"knn": "knn/top1"}, splits, splits).text().splitlines()
        )

    assert text(14)[:2] == [
        "14 query images, 40 in the bank; ranges are 95 % intervals",
        "14 query images are few: rows whose ranges overlap may be equally good",
    ]
    assert text(14)[3] == "pretrained backbone     50.0%   26.8-73.2"
    assert len(text(100)) == 3


def test_a_probe_of_somebody_elses_is_one_class_and_one_yaml(commands, pictures, tmp_path, monkeypatch):
    (tmp_path / "spread_probe.py").write_text(
        "class Spread:\n"
        "    reads = ('pooled',)\n"
        "    def __init__(self, scale): self.scale = scale\n"
        "    def check(self, encoder, num_classes): assert num_classes == 3\n"
        "    def run(self, encoder, data):\n"
        "        return {'spread': self.scale * float(data.features(encoder, 'query').features.std())}\n"
    )
    (tmp_path / "conf" / "evaluator").mkdir(parents=True)
    (tmp_path / "conf" / "evaluator" / "spread.yaml").write_text("_target_: spread_probe.Spread\nscale: 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ESVIT_TRUSTED_TARGETS", "spread_probe.")
    words = ["+evaluator@evaluation.spread=spread", "evaluation.probes=[knn,spread]", "evaluation.baselines=true"]
    words += [f"hydra.searchpath=[file://{tmp_path}/conf]", "evaluation.spread.scale=0.25", "trainer.max_epochs=1"]
    outcome = commands.pretrain(pictures, *words)
    assert outcome.code == 0, outcome.err
    rows = outcome.results["spread"]
    assert list(rows) == ["raw_pixels", "histogram", "untrained", "pretrained"]  # chance is of accuracies
    assert list(outcome.results["knn"]) == ["chance", *rows]
    assert len(set(rows.values())) == 4
    assert any(line.split() == ["k-NN", "spread"] for line in outcome.out.splitlines())
    assert any(line.endswith(f" {rows['pretrained']:.3g}") for line in outcome.out.splitlines())  # not in %


def test_chance_and_intervals_are_those_of_shares_of_images():
    from esvit_pl.commands.results import Measured

    splits = Splits(images(12), images(6))
    table = {"logistic": {"untrained": 0.4, "pretrained": 0.6}, "knn": {"untrained": 0.4, "pretrained": 0.5}}
    names = {"logistic": "logistic/per_class", "knn": "knn/top1"}
    found = Measured(table, {}, names, splits, splits)
    assert list(found.intervals) == ["knn"]
    assert found.final == {"logistic/per_class": 0.6, "knn/top1": 0.5}
