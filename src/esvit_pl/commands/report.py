"""``esvit-report``: one page about a run, or about several side by side. Quick, since it loads no torch by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from esvit_pl.configs.command_line import command
from esvit_pl.printing import say

if TYPE_CHECKING:
    from esvit_pl.runs.report import Picture

EXAMPLES = [
    "esvit-report RUN                              # writes RUN/report.html",
    "esvit-report RUN pictures=true                # with attention, correspondences and components of its images",
    "esvit-report RUN OTHER_RUN out=compared.html  # side by side: what differs comes first",
    "esvit-report logs/ serve=8000                 # in the browser, fresh while runs go on",
]


def needs(cfg: DictConfig) -> str | None:
    if not cfg.runs:
        return "esvit-report needs folders of runs, or folders that hold runs"
    missing = [folder for folder in cfg.runs if not Path(folder).is_dir()]
    return f"esvit-report needs folders of runs; there is no {' and no '.join(missing)}" if missing else None


@command(
    "report",
    summary="one page about a run, or about several side by side.",
    examples=EXAMPLES,
    needs=needs,
    bare_words="runs",
)
def main(cfg: DictConfig) -> None:
    from esvit_pl.runs.reading import find_runs
    from esvit_pl.runs.report import NAME, page, write

    silent_after = 60 * cfg.silent_minutes

    def folders() -> list[Path]:
        return [run.folder for run in find_runs(*cfg.runs, silent_after=silent_after)]

    found = folders()
    if not found:
        raise ValueError(f"no run in {', '.join(cfg.runs)}: a run's folder holds .hydra/overrides.yaml or results.json")
    drawn = pictures(cfg, found) if cfg.pictures else {}
    if cfg.serve is not None:
        serve(cfg, lambda: page(folders(), drawn=drawn, refresh=cfg.refresh, silent_after=silent_after))
        return
    out = Path(cfg.out) if cfg.out is not None else (found[0] if len(found) == 1 else Path()) / NAME
    say(write(out, page(found, drawn=drawn, silent_after=silent_after)))


def serve(cfg: DictConfig, make: Callable[[], str]) -> None:
    """Show the page to browsers of this machine until Ctrl-C."""
    from esvit_pl.commands.serving import PageServer

    if not 0 <= cfg.serve <= 65535:
        raise ValueError(f"serve must be a port from 0 to 65535, got {cfg.serve}")
    if cfg.refresh < 1:
        raise ValueError(f"refresh must be 1 second or more, got {cfg.refresh}")
    with PageServer(cfg.serve, make) as server:
        say(f"{server.address} shows the page to this machine alone; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("\nended")


def pictures(cfg: DictConfig, folders: Sequence[Path]) -> Mapping[Path, Sequence[Picture]]:
    """{run: pictures of what its backbone makes of its own query images}; a line about what cannot be drawn."""
    found: dict[Path, Sequence[Picture]] = {}
    for folder in folders:
        try:
            found[folder] = drawn(cfg, folder)
        except (ValueError, OSError) as error:
            say(f"note: no new pictures of {folder}: {error}")
    return found


def drawn(cfg: DictConfig, folder: Path) -> list[Picture]:
    """Attention, correspondences and principal components of a run's backbone on some of its query images."""
    from esvit_pl.commands.drawings import images_of, subjects
    from esvit_pl.runs.pictures import learned
    from esvit_pl.runs.report import Picture
    from esvit_pl.visualize import as_png

    one = cast(DictConfig, OmegaConf.merge(cfg, {}))
    with open_dict(one):
        one.ckpt_path = os.fspath(folder)
    (subject,) = subjects(one)
    data, _ = images_of(one, subject)
    figures = learned(subject.backbone, data.dataset.query, number=cfg.images, seed=cfg.seed)
    return [Picture(kind, as_png(figure)) for kind, figure in figures.items()]


if __name__ == "__main__":
    main()
