"""``esvit-data``: a look at the images before a run."""

from __future__ import annotations

import sys
from datetime import datetime
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from esvit_pl.configs.command_line import command
from esvit_pl.printing import say

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
    from tqdm import tqdm

    from esvit_pl.configs import assemble
    from esvit_pl.data.threads import default_workers
    from esvit_pl.datasets import check

    splits = assemble.construct(cfg, "dataset")
    say(splits.describe())
    out = Path(cfg.out) / f"check_{datetime.now():%Y-%m-%d_%H-%M-%S}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    report = check(
        splits,
        out,
        smallest=cfg.smallest,
        longest=cfg.longest,
        num_workers=default_workers() if cfg.workers is None else cfg.workers,
        progress=partial(tqdm, unit=" images", mininterval=0.2 if sys.stderr.isatty() else 10),
    )
    say(f"\n{report}\n\n{out}")
    if report.ends:
        sys.exit(1)


if __name__ == "__main__":
    main()
