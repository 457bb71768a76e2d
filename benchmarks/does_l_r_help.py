"""Does the region loss help, given time? ``python -m benchmarks.does_l_r_help jobs=2``, or ``make does-l-r-help``.

Six trainings of ``experiment=does_l_r_help``: loss=view and loss=view_region, seeds 0, 1 and 2, each with one thread,
`jobs` of them at a time. What was stopped goes on where it was. Then a table of the last epoch, the difference between
both losses seed by seed, and a picture of all epochs. Settings that are typed as ``name=value`` go to the trainings.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from esvit_pl.loggers import curve, read_metrics
from esvit_pl.profiling.report import as_markdown
from esvit_pl.runs.reading import read_run
from esvit_pl.visualize import draw_curves, save

LOSSES = {"view": "L_V", "view_region": "L_V + L_R"}
SEEDS = (0, 1, 2)
METRICS = {
    "knn/top1": "k-NN",
    "correspondence/exact": "correspondence, exact",
    "correspondence/near": "correspondence, near",
    "retrieval/image": "regions find their image",
    "retrieval/place": "regions find their place",
    "health/region_diversity": "region diversity",
}


class Row(NamedTuple):
    """A metric after the last epoch: mean and standard deviation over seeds."""

    metric: str
    view: str
    view_region: str
    difference: str
    """Seed by seed, view_region less view: mean, and the smallest and the largest one."""


def main(words: Sequence[str]) -> int:
    own = {"jobs": "1", "out": "logs/does_l_r_help"}
    own |= {name: value for name, _, value in (word.partition("=") for word in words) if name in own}
    others = [word for word in words if word.partition("=")[0] not in own]
    out = Path(own["out"])
    runs = {(loss, seed): out / f"{loss}-{seed}" for seed in SEEDS for loss in LOSSES}
    with ThreadPoolExecutor(int(own["jobs"])) as pool:
        codes = list(pool.map(lambda run: train(*run[0], run[1], others), runs.items()))
    if any(codes):
        print(f"exit codes {codes}: the same command goes on", file=sys.stderr)
        return 1
    found = {key: read_metrics(run / "metrics.csv") for key, run in runs.items()}
    print(as_markdown(table(found)))
    print(draw(found, out / "does_l_r_help.png"), flush=True)
    return 0


def train(loss: str, seed: int, run: Path, words: Sequence[str]) -> int:
    """One training, or what is left of it; its exit code."""
    if run.is_dir() and read_run(run).status == "finished":
        return 0
    command = [
        *(sys.executable, "-m", "esvit_pl.commands.pretrain", "experiment=does_l_r_help", f"loss={loss}"),
        *(f"seed={seed}", f"out={run}", "resume=auto", *words),
    ]
    run.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{run}.log", "a", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode


def table(found: Mapping[tuple[str, int], Sequence[Mapping[str, float]]]) -> list[Row]:
    rows = []
    for metric, title in METRICS.items():
        last = {key: curve(logged, metric)[1] for key, logged in found.items()}
        if not all(last.values()):
            continue
        view, both = ([last[loss, seed][-1] for seed in SEEDS] for loss in LOSSES)
        differences = [two - one for one, two in zip(view, both, strict=True)]
        rows.append(
            Row(
                title,
                *(f"{mean(values):.3f} ± {stdev(values):.3f}" for values in (view, both)),
                f"{mean(differences):+.3f} ({min(differences):+.3f} to {max(differences):+.3f})",
            )
        )
    return rows


def draw(found: Mapping[tuple[str, int], Sequence[Mapping[str, float]]], path: Path) -> Path:
    panels = {
        label: {title: [curve(found[loss, seed], metric) for seed in SEEDS] for loss, title in LOSSES.items()}
        for metric, label in METRICS.items()
    }
    return save(draw_curves(panels), path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
