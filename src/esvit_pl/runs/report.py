"""One page about a run, or about several side by side, from what lies in their folders. Loads no torch.

A run folder may come from a stranger. Every text of it is escaped (`page`), a picture is shown only if its file is a
PNG, and the page forbids the browser to run scripts or to load anything.
"""

from __future__ import annotations

import os
import shlex
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml

from esvit_pl.evaluation.names import (
    KNN_TOP1,
    PRETRAINED,
    PRETRAINED_SUBSET,
    PROBES,
    ROWS,
    TITLES,
    by_block,
    is_accuracy,
    is_training_loss,
    loss_title,
    main_metric,
)
from esvit_pl.metrics.health import HEALTHY, MEANINGS, Healthy, measure_of, symptom
from esvit_pl.metrics_file import curve, read_metrics
from esvit_pl.printing import say
from esvit_pl.runs.claim import resume_words
from esvit_pl.runs.reading import Run, read_json, read_run
from esvit_pl.runs.table import Cell as TableCell
from esvit_pl.runs.table import differing, shown
from esvit_pl.safe_text import lines_for_terminal
from esvit_pl.secret_values import starred
from esvit_pl.whole import replacing

NAME = "report.html"
HEALTH = "health/"
_LONGEST = 300  # signs of a setting
_FEW = 12  # settings that are shown at once
_LARGEST = 20 * 2**20  # bytes of a picture
_PNG = b"\x89PNG\r\n\x1a\n"
_KINDS = {
    "crops": ("Crops", "an image with the boxes of its crops, and the views that the training makes of them"),
    "comparison": ("Comparison", "the accuracies of the table above as bars"),
    "neighbours": ("Neighbours", "query images, and the images of the bank that are nearest to them"),
    "attention": ("Attention", "what the heads of a block attend to; a line goes round 60 % of the attention"),
    "correspondence": ("Correspondence", "lines join the most similar regions of two views; the rank is at either end"),
    "pca": ("Principal components", "images, and the first three components of their regions as colours"),
    "regions": ("Nearest regions", "places in images, and the regions of the bank that are nearest to them"),
    "views": ("Views", "an image with the boxes and regions of its crops"),
    "curves": ("Curves", "metrics against epochs"),
}
"""Kind of a picture, as its file's name begins -> title, and what can be seen on it."""
_DRAWN_ANEW = "learning_curve"
_SIGNS = {
    "finished": "good",
    "running": "unknown",
    "stopped": "unknown",
    "silent": "unknown",
    "failed": "bad",
    "killed": "bad",
}


class Cell(NamedTuple):
    """A text of a table."""

    text: str
    kind: str = ""
    """``good``, ``bad`` or ``unknown``: shown by a colour and by a sign."""


class Row(NamedTuple):
    """A line of a table: its head, a note below the head, and a cell for each column."""

    head: str
    cells: list[Cell]
    note: str = ""


class Picture(NamedTuple):
    """A picture that the page holds."""

    kind: str
    png: bytes
    about: str = ""
    """For those who cannot see it; empty: what its kind says."""
    file: str = ""
    """Where it lies in the run folder; empty: it was drawn for the page."""


class Measure(NamedTuple):
    """One measure of a run's health."""

    name: str
    value: float
    healthy: Healthy

    @property
    def cell(self) -> Cell:
        number = f"{self.value:.3g}"
        if self.healthy == Healthy():
            return Cell(f"{number}, no range", "unknown")
        return Cell(f"{number}, healthy", "good") if self.holds else Cell(f"{number}, outside", "bad")

    @property
    def holds(self) -> bool:
        return self.healthy.holds(self.value)


@dataclass(frozen=True)
class Facts:
    """What the folder of one run says. What is missing or unreadable is empty."""

    title: str
    run: Run
    config_text: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    results: Mapping[str, Any]
    rows: Sequence[Mapping[str, float]]
    pictures: Sequence[Picture]

    @classmethod
    def of(cls, folder: Path, title: str, *, drawn: Sequence[Picture] = (), silent_after: float = 3600.0) -> Facts:
        """
        Args:
            drawn: pictures beside those that lie in the folder, in place of those of the same kind.
        """
        text = _text_of(folder / "config.yaml")
        metrics = folder / "metrics.csv"
        kinds = {picture.kind for picture in drawn}
        lying = [picture for picture in pictures_in(folder / "figures") if picture.kind not in kinds]
        return cls(
            title,
            read_run(folder, silent_after=silent_after),
            text,
            _plain_yaml(text),
            read_json(folder / "environment.json"),
            read_json(folder / "results.json"),
            read_metrics(metrics) if metrics.is_file() else [],
            sorted([*lying, *drawn], key=lambda picture: (_order(picture.kind), picture.kind)),
        )

    @cached_property
    def health(self) -> list[Measure]:
        """The last values of the run's measures, with the ranges that its own monitor has."""
        ranges = {**HEALTHY, **_thresholds(self.config)}
        named = {
            name.removeprefix(HEALTH): value for name, value in self.run.results.items() if name.startswith(HEALTH)
        }
        return [
            Measure(name, value, ranges.get(name, ranges[measure]))
            for name, value in named.items()
            if (measure := measure_of(name)) is not None
        ]

    @cached_property
    def probes(self) -> dict[str, dict[str, float]]:
        """{probe: {row: value}} of results.json."""
        tables = {
            str(probe): {str(row): float(value) for row, value in table.items() if _is_number(value)}
            for probe, table in self.results.items()
            if isinstance(table, Mapping) and probe not in ("metrics", "evaluation")
        }
        return {probe: table for probe, table in tables.items() if PRETRAINED in table}

    def result(self, probe: str, row: str, *, so_far: bool = False) -> Cell:
        """A number of a probe, an accuracy with its 95 % interval; `so_far`: or what the training has measured."""
        value = self.probes.get(probe, {}).get(row)
        if value is None:
            measured = self.run.results.get(main_metric(probe)) if so_far else None
            return Cell("-" if measured is None else f"{100 * measured:.1f}% so far")
        intervals = at(self.results, f"evaluation.intervals.{probe}")
        if not isinstance(intervals, Mapping) and probe not in PROBES:
            return Cell(f"{value:.4g}")
        interval = intervals.get(row) if isinstance(intervals, Mapping) else None
        if isinstance(interval, Sequence) and len(interval) == 2 and all(map(_is_number, interval)):
            return Cell(f"{100 * value:.1f}% ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})")
        return Cell(f"{100 * value:.1f}%")


# -- from a folder


def pictures_in(folder: Path) -> list[Picture]:
    """The newest PNG of each kind in ``figures/`` of a run; a page draws the learning curve anew.

    ``attention_photo.png`` and ``attention/step_000145.png`` are of one kind.
    """
    files = [path for path in folder.rglob("*.png") if path.is_file()]
    newest: dict[str, Picture] = {}
    for path in sorted(files, key=lambda path: (path.stat().st_mtime, path.as_posix()), reverse=True):
        name = path.relative_to(folder)
        kind = _kind(name)
        if kind not in newest and kind != _DRAWN_ANEW and (content := _content(path)):
            newest[kind] = Picture(kind, content, file=f"{folder.name}/{name.as_posix()}")
    return [*newest.values()]


def _content(path: Path) -> bytes:
    """The bytes of a PNG; nothing of any other file, which a link may lead to."""
    with path.open("rb") as file:
        start = file.read(len(_PNG))
        return start + file.read() if start == _PNG and path.stat().st_size <= _LARGEST else b""


def _kind(path: Path) -> str:
    name = path.parts[0] if len(path.parts) > 1 else path.stem
    return next((kind for kind in _KINDS if name == kind or name.startswith(f"{kind}_")), name)


def _order(kind: str) -> int:
    return [*_KINDS].index(kind) if kind in _KINDS else len(_KINDS)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def _plain_yaml(text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _thresholds(config: Mapping[str, Any]) -> dict[str, Healthy]:
    """The ranges that a run's `CollapseMonitor` has in place of ours."""
    found: dict[str, Healthy] = {}
    callbacks = config.get("callbacks")
    for node in callbacks.values() if isinstance(callbacks, Mapping) else ():
        given = at({"node": node}, "node.thresholds")
        for name, bounds in given.items() if isinstance(given, Mapping) else ():
            if bounds is None:
                found[str(name)] = Healthy()
            elif isinstance(bounds, Sequence) and len(bounds) == 2:
                low, high = (float(bound) if _is_number(bound) else None for bound in bounds)
                found[str(name)] = Healthy(low, high)
    return found


def at(config: Any, key: str) -> Any:
    """The value at a dotted key of nested dicts; None if there is none.

    >>> at({"optimizer": {"lr": 0.1}}, "optimizer.lr")
    0.1
    """
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# -- in words


def in_words(value: Any) -> str:
    """A setting as a reader would write it.

    >>> in_words([0.3, 1.0]), in_words(True), in_words(None)
    ('[0.3, 1]', 'yes', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "none" if not value else f"[{', '.join(map(in_words, value))}]"
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def described(node: Any) -> str:
    """A node of a config: what it builds, and the settings that are not null.

    >>> described({"_target_": "esvit_pl.datasets.folder", "root": "photos", "labels": None})
    'folder: root photos'
    """
    if not isinstance(node, Mapping):
        return in_words(node)
    target = str(node.get("_target_", "")).rpartition(".")[2]
    settings = [f"{name.replace('_', ' ')} {in_words(value)}" for name, value in flat(node) if value is not None]
    words = ", ".join(words for words in settings if not words.startswith(" "))
    return f"{target}: {words}" if target and words else target or words


def flat(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dicts."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def story(facts: Facts) -> dict[str, str]:
    """What a run was: {topic: sentence}; a topic of which the config says nothing is left out."""
    config = facts.config

    def said(key: str, before: str = "", after: str = "") -> str:
        value = at(config, key)
        return "" if value is None else f"{before}{in_words(value)}{after}"

    def moving(key: str, before: str) -> str:
        start, end = said(key, before), said(f"{key}_end")
        return f"{start} ({said(f'{key}_schedule')} to {end})" if start and end else start

    def joined(*parts: str) -> str:
        return ", ".join(filter(None, parts))

    counts = {name: at(facts.results, f"evaluation.images.{name}") for name in ("train", "bank", "query")}
    images = f"{counts['train']:,} images to train on" if isinstance(counts["train"], int) else ""
    measured = ""
    if isinstance(counts["bank"], int) and isinstance(counts["query"], int):
        measured = f"measured with {counts['query']:,} query images, {counts['bank']:,} in the bank"
    classes = at(facts.results, "evaluation.classes")
    crops = " and ".join(
        f"{number} of {size} pixels"
        for number, size in (
            (said("augment.num_global"), said("augment.global_size")),
            (said("augment.num_local"), said("augment.local_size")),
        )
        if number not in ("", "0")
    )
    backbone = at(config, "backbone")
    if isinstance(backbone, Mapping) and "name" in backbone:
        backbone = {
            "_target_": backbone["name"],
            **{name: each for name, each in backbone.items() if name not in ("name", "_target_")},
        }
    topics = {
        "Data": joined(
            described(at(config, "dataset")) if at(config, "dataset") is not None else "",
            images,
            f"{classes} classes" if isinstance(classes, int) else "",
            measured,
        ),
        "Views of an image": crops,
        "Backbone": described(backbone) if backbone is not None else "",
        "What is learnt": described(at(config, "loss")) if at(config, "loss") is not None else "",
        "Optimizer": joined(
            said("optimizer.name"),
            moving("optimizer.lr", "learning rate ") + (" per 256 images" if at(config, "optimizer.lr") else ""),
            said("optimizer.warmup_epochs", "warm-up ", " epochs"),
            moving("optimizer.weight_decay", "weight decay "),
            said("module.clip_grad", "gradients clipped at "),
        ),
        "Teacher": moving("module.momentum", "follows the student with momentum "),
        "Length": joined(
            said("trainer.max_epochs", "", " epochs"),
            said("datamodule.batch_size", "batches of ", " images a process"),
            f"{said('trainer.accumulate_grad_batches')} of them a step"
            if at(config, "trainer.accumulate_grad_batches") not in (None, 1)
            else "",
        ),
        "Began with": joined(said("init_from"), said("ckpt_path")),
        "Computed": joined(
            said("trainer.accelerator"),
            said("trainer.devices", "devices: "),
            said("trainer.precision", "precision "),
            said("seed", "seed "),
        ),
    }
    return {topic: sentence for topic, sentence in topics.items() if sentence}


def range_in_words(healthy: Healthy) -> str:
    """
    >>> range_in_words(Healthy(low=0.05)), range_in_words(Healthy(0.1, 0.9))
    ('at least 0.05', '0.1 to 0.9')
    """
    if healthy.low is not None and healthy.high is not None:
        return f"{healthy.low:g} to {healthy.high:g}"
    if healthy.low is not None:
        return f"at least {healthy.low:g}"
    return "no range; compare it with earlier steps" if healthy.high is None else f"at most {healthy.high:g}"


def verdict(facts: Facts) -> Cell:
    """All measures of a run's health in one sentence."""
    judged = [measure for measure in facts.health if measure.healthy != Healthy()]
    outside = [measure.name for measure in judged if not measure.holds]
    if not judged:
        return Cell("not measured", "unknown")
    if not outside:
        return Cell(f"all {len(judged)} measures are healthy" if len(judged) > 1 else "the measure is healthy", "good")
    return Cell(f"{len(outside)} of {len(judged)} outside: {', '.join(outside)}", "bad")


def commands(facts: Facts) -> dict[str, str]:
    """{purpose: command line for a shell}; secrets are stars. Only for runs that have kept a checkpoint."""
    folder = facts.run.folder
    resume = resume_words(folder)
    if resume is None:
        return {}
    run = f"ckpt_path={folder}"
    if resume[0] != "esvit-pretrain":  # a probe of a pretrained backbone
        return {"Go on with it": shlex.join(starred(resume))}
    lines = {
        "k-NN on the images of its training": ["esvit-knn", run],
        "A linear probe on them": ["esvit-linear", run],
        "Look into it": ["esvit-report", str(folder), "pictures=true"],
        "Go on with it": starred(resume),
        "Export it for timm": ["esvit-convert", run, "to=timm", f"out={folder.resolve().name}_timm"],
    }
    return {purpose: shlex.join(words) for purpose, words in lines.items()}


# -- tables: a column for each run


def differences(runs: Sequence[Facts]) -> tuple[list[Row], list[Row]]:
    """The settings that differ between runs: those that were typed, and all others of their configs."""
    typed = differing([each.run for each in runs])
    first = [_setting(key, [each.run.overrides.get(key) for each in runs]) for key in typed]
    places = [[str(each.run.folder), str(each.run.folder.resolve())] for each in runs]
    configs = [dict(flat(each.config)) for each in runs]
    rest = []
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config.get(key) for config in configs]
        own = all(any(place in str(value) for place in some) for value, some in zip(values, places, strict=True))
        if key not in typed and not own and len({repr(value) for value in values}) > 1:
            rest.append(Row(key, [Cell(in_words(value)) for value in values]))
    return first, rest


def _setting(key: str, values: Iterable[TableCell]) -> Row:
    return Row(key, [Cell("as configured" if value is None else shown(value, "run")) for value in values])


def glance(runs: Sequence[Facts]) -> list[Row]:
    """Status, length, main results and health."""
    rows = [
        Row("Status", [Cell(each.run.status, _SIGNS.get(each.run.status, "unknown")) for each in runs]),
        Row("Epochs begun", [Cell(in_words(each.run.epochs)) for each in runs]),
        Row("Steps done", [Cell(in_words(each.run.steps)) for each in runs]),
    ]
    for probe in [*PROBES, *(probe for probe in _all(each.probes for each in runs) if probe not in PROBES)]:
        rows.append(Row(_title(probe), [each.result(probe, PRETRAINED, so_far=True) for each in runs]))
    for name in filter(is_training_loss, _all(each.run.results for each in runs)):
        rows.append(Row(loss_title(name), [Cell(shown(each.run.results.get(name), name)) for each in runs]))
    rows.append(Row("Health", [verdict(each) for each in runs]))
    return [row for row in rows if any(cell.text != "-" for cell in row.cells)]


def stories(runs: Sequence[Facts]) -> list[Row]:
    told = [story(each) for each in runs]
    return [Row(topic, [Cell(one.get(topic, "-")) for one in told]) for topic in _all(told)]


def health(runs: Sequence[Facts]) -> list[Row]:
    """A line for each measure: its range, then a cell for each run."""
    found = [{measure.name: measure for measure in each.health} for each in runs]
    rows = []
    for name in _all(found):
        ranges = dict.fromkeys(range_in_words(some[name].healthy) for some in found if name in some)
        cells = [some[name].cell if name in some else Cell("-") for some in found]
        rows.append(
            Row(name.replace("_", " "), [Cell("; ".join(ranges)), *cells], MEANINGS.get(measure_of(name) or "", ""))
        )
    return rows


def symptoms(facts: Facts) -> list[str]:
    """What the measures outside their ranges mean, and what to look at."""
    return [symptom(each.name, each.value, each.healthy) for each in facts.health if not each.holds]


def accuracies(runs: Sequence[Facts]) -> list[Row]:
    """A line for each baseline, then a cell for each probe of each run (`probes_of`)."""
    known = _all(table for each in runs for table in each.probes.values())
    names = [*(row for row in ROWS if row in known), *(row for row in known if row not in ROWS)]
    return [
        Row(
            ROWS[row].table if row in ROWS else row,
            [each.result(probe, row) for each in runs for probe in each.probes],
            "on as many images as the rows above" if row == PRETRAINED_SUBSET else "",
        )
        for row in names
    ]


def blocks(runs: Sequence[Facts]) -> tuple[list[str], list[Row]]:
    """What is known of each block: headings, and a line for each block with every measure of each run."""
    found = [by_block(each.run.results) for each in runs]
    columns = [(place, measure) for place, some in enumerate(found) for measure in _all(some.values())]
    heads = [f"{runs[place].title}: {_title(m)}" if len(runs) > 1 else _title(m) for place, m in columns]
    cells = {
        block: [Cell(in_words(found[place].get(block, {}).get(measure))) for place, measure in columns]
        for block in sorted({block for some in found for block in some})
    }
    return heads, [Row(f"block {block}", line) for block, line in cells.items()]


def environments(runs: Sequence[Facts]) -> list[Row]:
    """Command, versions and machine."""

    def of(facts: Facts) -> dict[str, str]:
        known = {name: value for name, value in facts.environment.items() if name not in ("packages", "git", "command")}
        words, git = facts.environment.get("command"), facts.environment.get("git")
        packages = facts.environment.get("packages")
        return {
            "command": shlex.join(map(str, words)) if isinstance(words, list) else "-",
            **{str(name): in_words(value) or "none" for name, value in known.items()},
            **({"git": in_words(at(git, "commit")) + (", with changes" if at(git, "changed") else "")} if git else {}),
            **(
                {str(name): in_words(value) for name, value in packages.items()}
                if isinstance(packages, Mapping)
                else {}
            ),
        }

    told = [of(each) for each in runs]
    return [Row(name, [Cell(one.get(name, "-")) for one in told]) for name in _all(told) if told]


def metrics(runs: Sequence[Facts]) -> list[Row]:
    """The last value of everything that was logged."""
    names = sorted(_all(each.run.results for each in runs))
    return [Row(name, [Cell(shown(each.run.results.get(name), name)) for each in runs]) for name in names]


def _all(tables: Iterable[Iterable[str]]) -> list[str]:
    """The names of all, each once, in the order in which they come."""
    return list(dict.fromkeys(name for table in tables for name in table))


def _title(probe: str) -> str:
    return TITLES.get(probe, probe)


# -- curves


def curves(runs: Sequence[Facts]) -> Picture | None:
    """Losses and k-NN accuracy against epochs; those of several runs in one picture. None if nothing was logged."""
    from esvit_pl.visualize import as_png, draw_curves, learning_curve

    names = [name for name in _all(row for each in runs for row in each.rows) if is_training_loss(name)]
    names += [KNN_TOP1] if any(KNN_TOP1 in row for each in runs for row in each.rows) else []
    lines = {name: {each.title: curve(each.rows, name) for each in runs} for name in names}
    about = "; ".join(
        f"{'' if len(runs) == 1 else f'{title}: '}{_curve_in_words(name, *line)}"
        for name, some in lines.items()
        for title, line in some.items()
        if line[0]
    )
    if not about:
        return None
    if len(runs) == 1:
        baselines = {
            row: value
            for row, value in runs[0].probes.get("knn", {}).items()
            if row not in (PRETRAINED, PRETRAINED_SUBSET)
        }
        accuracy = KNN_TOP1 if KNN_TOP1 in names else None
        return Picture("curves", as_png(learning_curve(runs[0].rows, baselines, accuracy=accuracy)), about)
    scale = {name: 100 if is_accuracy(name) else 1 for name in names}
    panels = {
        f"{PROBES['knn']} top-1 (%)" if name == KNN_TOP1 else loss_title(name): {
            title: [(epochs, [scale[name] * value for value in values])]
            for title, (epochs, values) in some.items()
            if epochs
        }
        for name, some in lines.items()
    }
    return Picture("curves", as_png(draw_curves(panels)), about)


def _curve_in_words(name: str, epochs: Sequence[float], values: Sequence[float]) -> str:
    first, last = (shown(value, name) for value in (values[0], values[-1]))
    title = f"{PROBES['knn']} top-1" if name == KNN_TOP1 else loss_title(name)
    if len(values) == 1:
        return f"{title} {first} after epoch {epochs[0]:g}"
    return f"{title} from {first} after epoch {epochs[0]:g} to {last} after epoch {epochs[-1]:g}"


# -- the page


def page(
    folders: Sequence[Path],
    *,
    drawn: Mapping[Path, Sequence[Picture]] | None = None,
    refresh: float | None = None,
    silent_after: float = 3600.0,
) -> str:
    """The HTML of one run, or of several side by side.

    Args:
        folders: of the runs.
        drawn: {folder: pictures beside those that lie in it}.
        refresh: while a run goes on, the browser asks for the page again after so many seconds.
        silent_after: as in `read_run`.
    """
    names = titles(folders)
    runs = [
        Facts.of(folder, title, drawn=(drawn or {}).get(folder, ()), silent_after=silent_after)
        for folder, title in zip(folders, names, strict=True)
    ]
    goes_on = any(each.run.status == "running" for each in runs)
    first, rest = differences(runs) if len(runs) > 1 else ([], [])
    kinds = _all([picture.kind for picture in each.pictures] for each in runs)
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("esvit_pl.runs", ""),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.jinja")
    return template.render(
        title=f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs side by side",
        runs=runs,
        names=names,
        refresh=refresh if goes_on else None,
        few=len(rest) <= _FEW,
        written=f"{time.strftime('%Y-%m-%d %H:%M:%S')}, esvit_pl {version('esvit_pl')}",
        typed=first,
        configured=rest,
        glance=glance(runs),
        stories=stories(runs),
        health=health(runs),
        symptoms=[(each.title, symptoms(each)) for each in runs if symptoms(each)],
        curves=curves(runs),
        accuracies=accuracies(runs),
        blocks=blocks(runs),
        probes=[[_title(probe) for probe in each.probes] for each in runs],
        pictures={
            kind: [(each.title, picture) for each in runs for picture in each.pictures if picture.kind == kind]
            for kind in sorted(kinds, key=lambda kind: (_order(kind), kind))
        },
        kinds={kind: _KINDS.get(kind, (kind.replace("_", " "), "a picture that the run has drawn")) for kind in kinds},
        environments=environments(runs),
        commands=[(each.title, commands(each)) for each in runs],
        metrics=metrics(runs),
        base64=lambda content: b64encode(content).decode(),
    )


def titles(folders: Sequence[Path]) -> list[str]:
    """Names of runs: the last part of the folder, or where several have a common parent, what comes after it.

    >>> titles([Path("logs/a/0"), Path("logs/b/0")]), titles([Path("logs/a")])
    (['a/0', 'b/0'], ['a'])
    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) == 1:
        return [path.name for path in paths]
    above = os.path.commonpath(paths)
    return [path.name if str(path) == above else os.path.relpath(path, above) for path in paths]


def _visible(value: object) -> object:
    """Control characters and surrogates of texts as escapes; jinja then escapes what HTML would read."""
    return value if hasattr(value, "__html__") else lines_for_terminal(str(value))


def write(path: Path, html: str) -> Path:
    """Write a page, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(html, encoding="utf-8")
    return path


def write_at_the_end(folder: Path) -> None:
    """``report.html`` of a run that has ended well; whatever goes wrong becomes one line."""
    try:
        write(folder / NAME, page([folder]))
    except Exception as error:
        say(f"note: {folder / NAME} could not be written ({type(error).__name__}: {' '.join(str(error).split())})")
