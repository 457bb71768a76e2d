"""Does the region loss help, given time? ``python -m benchmarks.does_l_r_help jobs=2``, or ``make does-l-r-help``.

Trainings of ``experiment=does_l_r_help`` with loss=view and loss=view_region, seeds 0, 1 and 2, each with one thread,
`jobs` of them at a time. What was stopped goes on where it was. What a finished training has measured is written to a
file in `kept`; where that file is, nothing is trained. Then a table of the last epoch, the difference between both
losses seed by seed, and a picture of all epochs. Settings that are typed as ``name=value`` go to the trainings.

The difference in k-NN also has a 95 % interval: patches of one tile of a photograph are alike, so whole tiles are
drawn anew, 10,000 times (a paired bootstrap).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from esvit_pl.checkpoints import load_backbone
from esvit_pl.datasets import ImageDataset, photograph_windows
from esvit_pl.evaluation import extract_features
from esvit_pl.evaluation.interval import resampled
from esvit_pl.metrics import knn_predict
from esvit_pl.metrics_file import curve, read_metrics
from esvit_pl.profiling.report import as_markdown
from esvit_pl.runs.reading import read_run
from esvit_pl.visualize import draw_curves, save

LOSSES = {"view": "L_V", "view_region": "L_V + L_R"}
SEEDS = (0, 1, 2)
CURVES = {
    "knn/top1": "k-NN",
    "correspondence/exact": "correspondence, exact",
    "correspondence/near": "correspondence, near",
    "retrieval/image": "regions find their image",
    "retrieval/place": "regions find their place",
    "health/region_diversity": "region diversity",
}
METRICS = {"linear/top1": "linear probe", **CURVES}
Key = tuple[str, int]


class Kept(NamedTuple):
    """What a training has measured."""

    last: Mapping[str, float]
    """The metrics at its end."""
    curves: Mapping[str, tuple[list[float], list[float]]]
    """{metric: (epochs that are done, values)}"""
    tiles: Mapping[str, tuple[int, int]]
    """{tile: (patches that k-NN gets right, patches)} of the held-out ones."""
    hours: float
    """Of computation (CPU time) since the training was last started."""


class Row(NamedTuple):
    """A metric after the last epoch: mean and standard deviation over seeds."""

    metric: str
    view: str
    view_region: str
    difference: str
    """Seed by seed, view_region less view: mean, and the smallest and the largest one."""


def main(words: Sequence[str]) -> int:
    own = {"jobs": "1", "out": "logs/does_l_r_help", "kept": "", "seeds": ",".join(map(str, SEEDS))}
    own |= {name: value for name, _, value in (word.partition("=") for word in words) if name in own}
    others = [word for word in words if word.partition("=")[0] not in own]
    out = Path(own["out"])
    kept = Path(own["kept"] or out / "kept")
    keys = [(loss, int(seed)) for seed in own["seeds"].split(",") for loss in LOSSES]
    with ThreadPoolExecutor(int(own["jobs"])) as pool:
        codes = list(pool.map(lambda key: keep(key, out, kept, others), keys))
    if any(codes):
        print(f"exit codes {codes}: the same command goes on", file=sys.stderr)
        return 1
    found = {key: read(file_of(key, kept)) for key in keys}
    print(as_markdown(table(found)))
    for line in sentences(found):
        print(line)
    print(draw(found, kept / "does_l_r_help.png"), flush=True)
    return 0


def keep(key: Key, out: Path, kept: Path, words: Sequence[str]) -> int:
    """One training, or what is left of it, and the file of what it has measured; its exit code."""
    file = file_of(key, kept)
    if file.is_file():
        return 0
    run = out / "{}-{}".format(*key)
    code, seconds = train(*key, run, words)
    if code == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        measured = measure(run, seconds / 3600)
        file.write_text(json.dumps(measured._asdict(), indent=1) + "\n", encoding="utf-8")
    return code


def file_of(key: Key, kept: Path) -> Path:
    return kept / "{}-{}.json".format(*key)


def read(file: Path) -> Kept:
    return Kept(**json.loads(file.read_text(encoding="utf-8")))


def train(loss: str, seed: int, run: Path, words: Sequence[str]) -> tuple[int, float]:
    """Its exit code, and seconds of computation."""
    if run.is_dir() and read_run(run).status == "finished":
        return 0, 0.0
    command = [
        *(sys.executable, "-m", "esvit_pl.commands.pretrain", "experiment=does_l_r_help", f"loss={loss}"),
        *(f"seed={seed}", f"out={run}", "resume=auto", *words),
    ]
    run.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{run}.log", "a", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


def measure(run: Path, hours: float) -> Kept:
    logged = read_metrics(run / "metrics.csv")
    curves = {metric: (epochs, values) for metric in CURVES for epochs, values in [curve(logged, metric)] if values}
    results = read_run(run).results
    last = {metric: results[metric] for metric in METRICS if metric in results}
    return Kept(last, curves, right_of_each_tile(run), round(hours, 2))


def right_of_each_tile(run: Path) -> dict[str, tuple[int, int]]:
    """k-NN of the training's teacher: {tile: (patches that are right, patches)}."""
    how = OmegaConf.to_container(OmegaConf.load(run / ".hydra" / "config.yaml").dataset)
    images = photograph_windows(**{name: value for name, value in how.items() if name != "_target_"})
    backbone = load_backbone(run)
    bank, query = (
        extract_features(backbone, batches(dataset, backbone.transform)) for dataset in (images.bank, images.query)
    )
    assert bank.labels is not None and query.labels is not None
    right = knn_predict(bank.features, bank.labels, query.features)[:, 0] == query.labels
    tiles: dict[str, tuple[int, int]] = {}
    for index, hit in enumerate(right.tolist()):
        tile = images.query.name(index).rpartition("/")[0]
        hits, number = tiles.get(tile, (0, 0))
        tiles[tile] = hits + hit, number + 1
    return tiles


def batches(dataset: ImageDataset, transform: Any, size: int = 256) -> Iterator[tuple[Tensor, list[int]]]:
    for start in range(0, len(dataset), size):
        images, labels = zip(*(dataset[index] for index in range(start, min(start + size, len(dataset)))), strict=True)
        yield torch.stack([transform(image) for image in images]), list(labels)


def table(found: Mapping[Key, Kept]) -> list[Row]:
    rows = []
    for metric, title in METRICS.items():
        if not all(metric in kept.last for kept in found.values()):
            continue
        view, both = ([kept.last[metric] for (loss, _), kept in found.items() if loss == each] for each in LOSSES)
        differences = [two - one for one, two in zip(view, both, strict=True)]
        rows.append(
            Row(
                title,
                *(spread(values) for values in (view, both)),
                f"{mean(differences):+.3f}"
                + (f" ({min(differences):+.3f} to {max(differences):+.3f})" if len(differences) > 1 else ""),
            )
        )
    return rows


def spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation of several."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def paired(found: Mapping[Key, Kept], draws: int = 10_000) -> tuple[float, float, float]:
    """k-NN with both losses less k-NN with L_V, over all seeds; and the ends of its 95 % interval."""
    gain: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for (loss, _), kept in found.items():
        for tile, (right, patches) in kept.tiles.items():
            gain[tile] += right if loss == "view_region" else -right
            number[tile] += patches if loss == "view" else 0
    tiles, patches = list(number), [number[tile] for tile in number]
    values = np.repeat([gain[tile] / number[tile] for tile in tiles], patches)
    low, high = resampled(values, np.repeat(tiles, patches), draws=draws)
    return float(values.mean()), low, high


def sentences(found: Mapping[Key, Kept]) -> list[str]:
    middle, low, high = paired(found)
    tiles = len(next(iter(found.values())).tiles)
    hours = [kept.hours for kept in found.values()]
    return [
        f"k-NN, difference over all seeds: {middle:+.3f}, 95 % interval {low:+.3f} to {high:+.3f} ({tiles} tiles)",
        f"{len(hours)} trainings of {min(hours):.1f} to {max(hours):.1f} hours of CPU time each",
    ]


def draw(found: Mapping[Key, Kept], path: Path) -> Path:
    panels = {
        label: {
            title: [kept.curves[metric] for (each, _), kept in found.items() if each == loss]
            for loss, title in LOSSES.items()
        }
        for metric, label in CURVES.items()
        if all(metric in kept.curves for kept in found.values())
    }
    return save(draw_curves(panels), path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
