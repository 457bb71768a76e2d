"""``esvit-table``: runs, their settings, how far they came, what they measured. Quick, since it loads no torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig

from esvit_pl.configs.command_line import command
from esvit_pl.printing import say
from esvit_pl.runs.reading import Run, find_runs
from esvit_pl.runs.table import as_text, draw, goal, ranked, report, run_table, write_csv

EXAMPLES = [
    "esvit-table logs/ sort=knn/top1",
    "esvit-table logs/pretrain/runs logs/pretrain/multiruns columns=[linear/*,train/lr] out=table.csv",
    "esvit-table sort=optimizer.lr reverse=true",
    "esvit-table logs/pretrain/multiruns sort=linear/top1 picture=linear.png",
    "esvit-table published=true",
]


STATUSES = ("finished", "running", "stopped", "failed", "killed", "silent", "no results", "all")


def needs(cfg: DictConfig) -> str | None:
    if cfg.status not in STATUSES:
        return f"esvit-table knows no status={cfg.status}; choose one of {', '.join(STATUSES)}"
    missing = [folder for folder in cfg.folders if not Path(folder).is_dir()]
    if cfg.published and missing == [cfg.paths.log_dir]:  # nobody named a folder, and a table without runs is one
        return None
    return f"esvit-table needs folders that hold runs; there is no {' and no '.join(missing)}" if missing else None


@command(
    "table",
    summary="show runs, settings, how far they came, what they measured.",
    examples=EXAMPLES,
    needs=needs,
    bare_words="folders",
)
def main(cfg: DictConfig) -> None:
    folders = list(cfg.folders)
    if cfg.published:
        return _beside_published([folder for folder in folders if Path(folder).is_dir()], cfg.silent_minutes, cfg.out)
    runs = find_runs(*folders, silent_after=60 * cfg.silent_minutes)
    if not runs:
        raise ValueError(f"no run in {', '.join(folders)}: a run's folder holds .hydra/overrides.yaml or results.json")
    runs, hidden = of_status(runs, cfg.status)
    sort = cfg.sort or goal(runs)
    if sort is not None:
        runs = ranked(runs, sort, reverse=cfg.reverse)
    elif cfg.reverse:
        runs.reverse()
    columns = [cfg.columns] if isinstance(cfg.columns, str) else list(cfg.columns)
    if sort is not None and any(sort in run.results for run in runs):
        columns.insert(0, sort)
    base = folders[0] if len(folders) == 1 else "."
    say(report(runs, columns, base=base, settings=cfg.settings))
    if hidden:
        say(f"\nnot shown: {hidden} (status=all shows them)")
    if cfg.out is not None:
        say(f"\n{write_csv(run_table(runs, columns, base=base), cfg.out)}")
    if cfg.picture is not None:
        if sort is None or not any(sort in run.results for run in runs):
            raise ValueError(f"picture={cfg.picture} shows the metric of sort=, and no run has {sort or 'one'}")
        say("\n".join(map(str, draw(runs, sort, cfg.picture))))


def of_status(runs: list[Run], status: str) -> tuple[list[Run], str]:
    """The runs of this status, and the others in words: ``2 failed, 1 running``. Where none has it, all are shown."""
    shown = [run for run in runs if status in (run.status, "all")] or runs
    others = Counter(run.status for run in runs if run not in shown)
    return shown, ", ".join(f"{number} {name}" for name, number in others.most_common())


def _beside_published(folders: list[str], silent_minutes: float, out: str | None) -> None:
    from esvit_pl.runs.beside_published import PROTOCOL, left_out, published_table

    runs = find_runs(*folders, silent_after=60 * silent_minutes)
    table = published_table(runs)
    say("\n\n".join([as_text(table), PROTOCOL, *left_out(runs)]))
    if out is not None:
        say(f"\n{write_csv(table, out)}")


if __name__ == "__main__":
    main()
