"""``esvit-data``: a look at the images before a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import TypeVar

from omegaconf import DictConfig

from esvit_pl.configs.command_line import command

T = TypeVar("T")
EXAMPLES = [
    "esvit-data check dataset=folder dataset.root=photos/",
    "esvit-data check dataset=folder dataset.root=scans/ dataset.value_range=[0,4095] dataset.on_bad_image=skip",
]
TASKS = ("check",)


def needs(cfg: DictConfig) -> str | None:
    if not cfg.tasks:
        return f"esvit-data needs a word that says what to do: {', '.join(TASKS)}"
    wrong = [word for word in cfg.tasks if word not in TASKS]
    if wrong:
        return f"esvit-data does not know {', '.join(wrong)}; it knows {', '.join(TASKS)}"
    if cfg.get("dataset") is None:
        return "esvit-data check needs images: dataset=folder dataset.root=FOLDER"
    return None


@command("data", summary="look at the images before a run.", examples=EXAMPLES, needs=needs, bare_words="tasks")
def main(cfg: DictConfig) -> None:
    from esvit_pl.configs import assemble
    from esvit_pl.datasets import check

    splits = assemble.construct(cfg, "dataset")
    print(splits.describe(), flush=True)
    out = Path(cfg.out) / f"check_{datetime.now():%Y-%m-%d_%H-%M-%S}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    report = check(
        splits,
        out,
        smallest=cfg.smallest,
        longest=cfg.longest,
        num_workers=cores if cfg.workers is None else cfg.workers,
        progress=with_progress,
    )
    print(f"\n{report}\n\n{out}", flush=True)
    if report.ends:
        sys.exit(1)


def with_progress(items: Iterator[T], total: int) -> Iterable[T]:
    """The items, and on stderr how far they are: a moving line in a terminal, elsewhere a line every ten seconds."""
    moving = sys.stderr.isatty()
    start = last = monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = monotonic()
        if now - last > (0.2 if moving else 10) or (moving and done == total):
            last, rate = now, done / (now - start)
            bar = "#" * (20 * done // total)
            line = f"{done:,}/{total:,} images, {rate:,.0f} a second, {(total - done) / rate:,.0f} s left"
            print(
                f"\r[{bar:<20}] {line:<60}" if moving else line, end="" if moving else "\n", file=sys.stderr, flush=True
            )
    if moving:
        print(file=sys.stderr)


if __name__ == "__main__":
    main()
