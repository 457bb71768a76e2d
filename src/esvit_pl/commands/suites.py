"""``esvit-evaluate suite=``: logistic regression on the data sets of a transfer suite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from esvit_pl.commands import evaluate
from esvit_pl.configs import weights
from esvit_pl.configs.several import named

if TYPE_CHECKING:
    from esvit_pl.commands.evaluate import Row
    from esvit_pl.datasets import Splits
    from esvit_pl.runs.transfer import Numbers, Transfer

PROBE = "logistic"


def check(cfg: DictConfig) -> None:
    """Refuse settings that a suite does not have.

    Raises:
        ValueError: there is no such suite, no root, or a setting that goes with ``dataset=`` alone.
    """
    from esvit_pl.configs.processes import processes
    from esvit_pl.datasets.catalogue import SUITES

    if cfg.suite not in SUITES:
        raise ValueError(f"suite={cfg.suite} does not exist; there are {', '.join(SUITES)}")
    if cfg.root is None:
        raise ValueError(f"suite={cfg.suite} needs root=FOLDER, in which its data sets lie as torchvision unpacks them")
    if cfg.get("dataset") is not None or cfg.groups is not None:
        raise ValueError(f"suite={cfg.suite} brings its own data sets; leave dataset= and groups= out")
    if list(cfg.evaluation.probes) not in (["knn"], [PROBE]):  # the first is the default
        raise ValueError(f"suite={cfg.suite} is measured with logistic regression; leave evaluation.probes= out")
    if processes(cfg) > 1:
        raise ValueError(f"suite={cfg.suite} runs in one process, got {processes(cfg)}; set trainer.devices=1")


def transfer(cfg: DictConfig) -> Transfer:
    """The whole job but for the files of the table."""
    from esvit_pl.configs import trainers
    from esvit_pl.datasets import catalogue
    from esvit_pl.evaluation.names import COUNTED
    from esvit_pl.runs.transfer import Line, Transfer

    check(cfg)
    trainers.check_devices(cfg)
    suite, root = catalogue.SUITES[cfg.suite], str(cfg.root)
    gone = {name: how for name in suite.datasets if (how := catalogue.missing(name, root)) is not None}
    titles = {name: catalogue.CATALOGUE[name].title for name in suite.datasets}
    if len(gone) == len(suite.datasets):
        said = [f"{titles[name]}: {how}" for name, how in gone.items()]
        raise ValueError("\n".join([f"none of the data sets of suite={cfg.suite} lies in '{root}':", *said]))
    if suite.note:
        weights.say(f"note: {suite.note}")
    weights.say(f"{len(suite.datasets) - len(gone)} of {len(suite.datasets)} data sets lie in '{root}'")
    there = [name for name in suite.datasets if name not in gone]
    for name in there:  # so that a data set that is not complete is refused before hours of work
        read(cfg, name)
    rows, supervised = subjects(cfg)
    found: dict[str, dict[str, Numbers]] = {}
    for name in there:
        splits = read(cfg, name)
        weights.say(f"{titles[name]} ({COUNTED[splits.metric]}):")
        found[name] = {row.title: measured(cfg, name, row, splits) for row in rows}
    lines = [
        Line(titles[name], catalogue.CATALOGUE[name].metric, found.get(name, {}), f"get it: {gone.get(name)}")
        for name in suite.datasets
    ]
    return Transfer(cfg.suite, [row.title for row in rows], lines, supervised, suite.note)


def read(cfg: DictConfig, name: str) -> Splits:
    from esvit_pl.datasets import catalogue

    return catalogue.load(name, str(cfg.root), check_counts=cfg.check_counts)


def subjects(cfg: DictConfig) -> tuple[list[Row], str | None]:
    """The backbones of ``ckpt_path`` and ``supervised``, and the title of the last."""
    rows = evaluate.subjects(cfg, take_dataset=False)
    if cfg.supervised is None:
        return rows, None
    theirs = cast(DictConfig, OmegaConf.merge(cfg))
    with open_dict(theirs):
        theirs.ckpt_path = {"supervised": cfg.supervised} if isinstance(cfg.supervised, str) else cfg.supervised
    titles = list(named(theirs.ckpt_path))
    if len(titles) != 1 or titles[0] in [row.title for row in rows]:
        raise ValueError(
            f"supervised must be one backbone, and none of ckpt_path=, got {', '.join(titles)}; {{NAME:PATH}} names it"
        )
    with weights.naming("supervised"):
        return rows + evaluate.subjects(theirs, take_dataset=False), titles[0]


def measured(cfg: DictConfig, name: str, row: Row, splits: Splits) -> Numbers:
    """What logistic regression says of one backbone on one data set; read, if it lies in ``out`` already."""
    from esvit_pl.configs import assemble
    from esvit_pl.datasets.catalogue import CATALOGUE

    if CATALOGUE[name].squash:
        row = row._replace(recipe=replace(row.recipe, eval_squash=True, eval_resize=row.recipe.eval_crop))
    probes = {PROBE: assemble.construct(cfg, f"evaluation.{PROBE}")}
    with weights.naming(name):
        found = evaluate.answers(cfg, row, probes, splits, Path(cfg.out) / "measured" / name)
    return dict(found[PROBE].numbers)
