"""``make tables`` writes the tables of docs/ and the expected accuracies of conf/experiment.

The published numbers come from `esvit_pl.profiling.published`, sizes from the backbones, settings from conf/, what
happens when something breaks from the marks ``@pytest.mark.fault(what, happens)`` of the tests that show it. A page
marks the place of a table with a line ``<!-- table: NAME -->``; the table ends at the next empty line.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from esvit_pl.backbones import Backbone
from esvit_pl.configs import assemble
from esvit_pl.configs.compose import compose, list_backbones
from esvit_pl.evaluation.names import is_accuracy
from esvit_pl.profiling import published, report
from esvit_pl.runs.beside_published import published_table

DOCS = Path(__file__).parent
EXPERIMENTS = DOCS.parent / "conf" / "experiment"
MARK = "<!-- table: "
SOURCES = {
    "swin": "2103.14030",
    "cvt": "2103.15808",
    "vil": "2103.15358",
    "deit": "2012.12877",
    "vit": "2010.11929",
    "resnet50": "1512.03385",
    "resnet50w5": "1512.03385",
    "resnet200w2": "1512.03385",
    "resnet152w3": "1903.06586",
}
"""First part of a config's name -> arXiv number of the architecture's paper."""


def main() -> None:
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")


def written() -> dict[Path, str]:
    """{file: its text with the present numbers}, for every page and every config of a published result."""
    tables = {
        "backbones": table(BACKBONES, map(backbone_cells, [name for name in list_backbones() if name != "timm"])),
        "recipe": table(RUNS, map(run_cells, published.RECIPE)),
        "two crops": table(RUNS, map(run_cells, published.TWO_CROPS)),
        "compared methods": table(COMPARED, compared_cells(DOCS / "results" / "compare_embedded")),
        "methods": table(METHODS, map(method_cells, published.METHODS)),
        "other images": table(RUNS, map(run_cells, published.OTHER_IMAGES)),
        "cost": table(COST, map(cost_cells, published.EXPERIMENTS)),
        "faults": table("| fault | what happens |", sorted(faults(DOCS.parent / "tests"))),
        "rivals": report.as_markdown(published.RIVALS),
        "beside published": beside_published(),
    }
    pages = {path: with_tables(path.read_text(encoding="utf-8"), tables) for path in sorted(DOCS.glob("*.md"))}
    names = [*published.EXPERIMENTS, *published.METHODS]
    return pages | {EXPERIMENTS / f"{name}.yaml": with_accuracy(name) for name in names}


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """A page whose marked tables are those of `tables`."""
    before, *parts = page.split(MARK)
    for part in parts:
        name, _, rest = part.partition(" -->\n")
        _, _, after = rest.partition("\n\n")
        before += f"{MARK}{name} -->\n{tables[name]}\n\n{after}"
    return before


def with_accuracy(experiment: str) -> str:
    """A file of conf/experiment whose header expects the published accuracy."""
    if experiment in published.METHODS:
        method = published.METHODS[experiment]
        expected = f"# Expected: {method} on ImageNet-1k ({method.source}; not repeated here)"
    else:
        linear, knn = str(published.EXPERIMENTS[experiment]).split(" / ")
        expected = f"# Expected: linear {linear} %, k-NN {knn} % on ImageNet-1k (published; not repeated here)"
    lines = (EXPERIMENTS / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(expected if line.startswith("# Expected: ") else line for line in lines) + "\n"


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def faults(tests: Path) -> set[tuple[str, ...]]:
    """(what breaks, what happens) of every mark in a folder of tests, read without importing them."""
    found = set()
    for path in tests.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                found.add(tuple(ast.literal_eval(argument) for argument in node.args))
    return found


def beside_published() -> str:
    """What ``esvit-table published=true`` shows without a run of ours."""
    head, rows = published_table([])
    kept = [place for place, name in enumerate(head) if name != "run"]
    cells = ([row[place] or "" for place in kept] for row in rows)
    return table(f"| {' | '.join(head[place] for place in kept)} |", cells)


COMPARED = (
    "| `loss=` | k-NN | linear | correspondence | effective rank | feature spread "
    "| trained parameters | views | a step | memory | published |"
)


def compared_cells(folder: Path) -> Iterator[list[object]]:
    """A method of the comparison, the best k-NN first: means over its seeds, and what its step costs.

    Args:
        folder: with ``runs.csv`` of esvit-table and ``methods.json`` of ``esvit-bench methods``.
    """
    (bench,) = json.loads((folder / "methods.json").read_text(encoding="utf-8"))
    costs = {row["method"]: row for row in bench["rows"]}
    runs: dict[str, list[dict[str, str]]] = {}
    with (folder / "runs.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            runs.setdefault(row["loss"], []).append(row)

    def spread(loss: str, metric: str) -> str:
        values = [float(row[metric]) for row in runs[loss] if row[metric]]
        text = shortened(values, in_percent=is_accuracy(metric))
        return text if len(values) == len(runs[loss]) else f"{text} (seeds: {len(values)})"

    def cells(loss: str) -> list[object]:
        cost = costs[loss]
        measured = [spread(loss, metric) for metric in COMPARED_METRICS]
        paid = [report.shown(name, cost[name]) for name in ("trained_parameters", "views", "time_ratio", "peak_bytes")]
        return [f"`{loss}`", *measured, *paid, published_beside(loss)]

    for loss in sorted(runs, key=lambda loss: -fmean(float(row["knn/top1"]) for row in runs[loss])):
        yield cells(loss)


def shortened(values: list[float], *, in_percent: bool) -> str:
    """Mean and deviation of several seeds, with so many digits as can be read."""
    scale, digits = (100, 1) if in_percent else (1, 3 if fmean(values) < 1 else 1)
    texts = [f"{scale * of(values):.{digits}f}" for of in (fmean, stdev) if len(values) > 1 or of is fmean]
    return " ± ".join(texts) + (" %" if in_percent else "")


COMPARED_METRICS = ("knn/top1", "linear/top1", "correspondence/exact", "health/effective_rank", "health/feature_spread")


def published_beside(loss: str) -> str:
    """A method's published result on ImageNet-1k, of Swin-T where there is one."""
    if (own := published.EXPERIMENTS.get(f"swin_tiny_w7_{loss}")) is not None:
        return f"Swin-T: linear {own.linear_percent:.1f} %, k-NN {own.knn_percent:.1f} %"
    result = next(result for name, result in published.METHODS.items() if name.partition("_")[0] == loss)
    return f"{result.architecture}: {result}"


METHODS = "| experiment | method | backbone | crops | global batch | epochs | published | source |"


def method_cells(name: str) -> list[object]:
    """A published run of another method, as its config repeats it."""
    cfg, result = compose("pretrain", f"experiment={name}", "dataset.root=/data"), published.METHODS[name]
    crops = f"{cfg.augment.num_global} + {cfg.augment.num_local}" if cfg.augment.num_local else cfg.augment.num_global
    batch = cfg.trainer.num_nodes * cfg.trainer.devices * cfg.datamodule.batch_size
    epochs = cfg.trainer.max_epochs
    return [f"`{name}`", result.method, result.architecture, crops, batch, epochs, result, result.source]


RUNS = "| experiment | GPUs | batch | epochs | L_R joins | linear / k-NN |"


def run_cells(name: str) -> list[object]:
    """A published run, as its config repeats it."""
    cfg = compose("pretrain", f"experiment={name}", "dataset.root=/data")
    nodes, gpus, batch = cfg.trainer.num_nodes, cfg.trainer.devices, cfg.datamodule.batch_size
    machines = f"{gpus} x {batch}" if nodes == 1 else f"{nodes} x {gpus} x {batch}"
    start = cfg.loss.region_start_epoch if cfg.loss.region_weight else "-"
    result = published.EXPERIMENTS[name]
    return [f"`{name}`", machines, nodes * gpus * batch, cfg.trainer.max_epochs, start, result]


COST = "| experiment | GPUs, as published | images seen | hours on one H100 | days on 8 | linear / k-NN |"
STEP_SECONDS, STEP_IMAGES = 0.1136, 64
"""A compiled step of Swin-T with windows of 7 and the published crops on an H100: docs/benchmarks.md."""
IMAGES = {"webvision_v1": 2.4e6, "openimages_v4": 7.5e6, "imagenet_22k": 14.2e6}
"""About so many; of ImageNet-1k it is 1,281,167."""


def cost_cells(name: str) -> list[object]:
    """What a published run would take, from one measured step; backbones in proportion to their measured throughput."""
    cfg = compose("pretrain", f"experiment={name}", "dataset.root=/data")
    backbone = next(backbone for backbone in published.ESVIT if name.startswith(f"{backbone}_"))
    seen = cfg.trainer.max_epochs * next((n for which, n in IMAGES.items() if name.endswith(which)), 1_281_167)
    slower = h100_images_per_second("swin_tiny_w7") / h100_images_per_second(backbone)
    crops = passes(cfg.augment) / passes(compose("pretrain").augment)
    hours = seen * STEP_SECONDS / STEP_IMAGES * slower * crops / 3600
    _, machines, _, _, _, result = run_cells(name)
    return [f"`{name}`", machines, f"{seen / 1e6:.0f} M", f"{hours:.0f}", f"{hours / 8 / 24:.1f}", result]


def passes(recipe: Any) -> float:
    """Forward passes of 224 px for an image: three times the student's (backward counts twice), once the teacher's."""
    area = recipe.num_global + recipe.num_local * (recipe.local_size / recipe.global_size) ** 2
    return 3 * area + recipe.num_global


def h100_images_per_second(backbone: str) -> float:
    """From the first table of docs/benchmarks.md with a line for this backbone."""
    lines = (DOCS / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    cells = next(line.split("|") for line in lines if line.startswith(f"| {backbone} "))
    return float(cells[5])


BACKBONES = "| `backbone=` | parameters | regions at 224 px | at 96 px | attention | architecture | L_V | L_V + L_R |"


def backbone_cells(name: str) -> list[object]:
    """A config of conf/backbone. On the meta device nothing is computed, only counted."""
    with torch.device("meta"):
        backbone: Backbone = assemble.construct(compose("pretrain", f"backbone={name}"), "backbone").eval()
        regions = [backbone(torch.empty(1, 3, side, side)).regions.shape[1] for side in (224, 96)]
    source = SOURCES.get(name.partition("_")[0])
    return [
        f"`{name}`",
        f"{sum(parameter.numel() for parameter in backbone.parameters()) / 1e6:.1f} M",
        *regions,
        attention_of(backbone),
        f"[{source}](https://arxiv.org/abs/{source})" if source else "ICML 2020",  # iGPT is not on arXiv
        *(published.accuracy(name, loss) or "-" for loss in ("view", "view_region")),
    ]


def attention_of(backbone: Backbone) -> str:
    """How its tokens see one another, in words."""
    spec: dict[str, Any] = backbone.spec
    if spec["name"] == "swin":
        return f"windows of {spec['window']}, shifted in turn"
    if spec["name"] == "cvt":
        return "windows of " + " ".join(map(str, spec["windows"]))
    if spec["name"] == "vil":
        kinds = [
            f"sliding, chunks of {w}" if s else "full" for s, w in zip(spec["sliding"], spec["windows"], strict=True)
        ]
        return "; ".join(f"{kind} (stages {stages(kinds, kind)})" for kind in dict.fromkeys(kinds))
    if spec["name"] == "igpt":
        return "causal"
    try:
        backbone.attention(torch.empty(1, 3, 224, 224, device="meta"))
    except NotImplementedError:
        return "none"
    return "full"


def stages(kinds: list[str], kind: str) -> str:
    numbers = [number for number, other in enumerate(kinds, start=1) if other == kind]
    return f"{numbers[0]}-{numbers[-1]}"


if __name__ == "__main__":
    main()
