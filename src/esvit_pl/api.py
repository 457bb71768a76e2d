"""The commands as functions, for notebooks and scripts: ``esvit_pl.pretrain``, ``evaluate``, ``embed``, ``plan``,
``compose``, ``list_backbones``.

They do what the commands do with the same configs, and leave nothing behind in the process: Hydra's global state,
random generators, warning filters and log levels are afterwards as they were.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from esvit_pl.configs import checks, resume_mode, run_folder
from esvit_pl.configs.compose import (
    check_probe,
    compose,
    composed,
    dataset_words,
    list_backbones,
    option_of,
    options,
    settings,
)
from esvit_pl.configs.config_space import CONFIGS
from esvit_pl.configs.main_guard import check_guard, check_not_in_a_copy
from esvit_pl.configs.own_images import settled
from esvit_pl.configs.processes import is_first_process
from esvit_pl.printing import say
from esvit_pl.runs.claim import OWN_PROBE, Claim, claimed, run_of

if TYPE_CHECKING:
    from esvit_pl.configs.plan import Plan
    from esvit_pl.datasets import Splits
    from esvit_pl.evaluation import Evaluator
    from esvit_pl.runs.result import Result


__all__ = ["compose", "embed", "evaluate", "list_backbones", "plan", "pretrain"]


def pretrain(
    data: Any = None,
    out: str | os.PathLike[str] | None = None,
    backbone: str | None = None,
    epochs: int | None = None,
    **overrides: Any,
) -> Result:
    """Pretrain a backbone without labels, then measure it: ``esvit-pretrain`` as a function.

        run = esvit_pl.pretrain("photos/", out="logs/mine", backbone="swin_tiny_w7", epochs=100, trainer="gpu")
        run.backbone, run.checkpoint, run.metrics["knn/top1"], run.figures["learning_curve"]

    Args:
        data: a folder of images, a table, the name of a ``dataset`` option ("photographs"), or whatever of yours
            holds images: a list of paths or of pairs (path, label), a torch Dataset, a Hugging Face dataset, a
            DataFrame, ``(train, val)``, ...; docs/data.md lists all. May be left out where an ``experiment`` brings its
            images.
        out: folder of the run; by default a new one, ``logs/pretrain/runs/<time>``, or for ``ckpt_path=`` of a run that
            run's own. With ``trainer="ddp"`` give one, so that the script means the same folder on every process.
        backbone: one of `list_backbones()`.
        epochs: length of the training.
        overrides: every other setting of the command: an option of a group (``loss="view"``, ``trainer="gpu"``,
            ``experiment="embedded"``), a dict of a group's settings (``optimizer={"lr": 0.001}``), or a dotted name
            (``**{"loss.num_prototypes": 4096}``). ``ckpt_path="logs/mine"`` goes on with a run, ``resume="auto"``
            with the one in `out` if there is one, ``resume={"allow": ["optimizer.lr"]}`` lets settings differ from it,
            ``overwrite=True`` replaces a run that lies in `out`.
            ``callbacks`` takes names and objects, ``["default", MyCallback()]``; objects alone are added to the default
            ones.

    Raises:
        ValueError: a setting that does not exist (with near ones) or does not fit; `out` holds a run already, or
            another process writes there.
    """
    from esvit_pl.commands import pretrain as job

    check_not_in_a_copy("pretrain")
    overrides, callbacks = _callback_objects(overrides)
    words = settings({"backbone": backbone, "trainer.max_epochs": epochs}, overrides)
    cfg, choices, images, words = _prepared("pretrain", data, words)
    _need("pretrain", cfg, choices, images, ())
    if cfg.datamodule.num_workers != 0:
        check_guard("pretrain", images)
    if cfg.dry_run:
        raise ValueError("dry_run is for the command; esvit_pl.plan(...) takes the same arguments and starts nothing")
    with _folder("pretrain", out, cfg) as folder, nothing_left_behind():
        cfg.paths.output_dir = str(folder)
        _note(folder, words)
        default = choices.get("callbacks") == "default"
        return job.pretrain(cfg, images, default_callbacks=default, callbacks=callbacks)


def plan(
    data: Any = None,
    backbone: str | None = None,
    epochs: int | None = None,
    *,
    timed: bool = False,
    **overrides: Any,
) -> Plan:
    """What `pretrain` with these arguments would be: steps, global batch, learning rate, parameters, memory, disk.

        print(esvit_pl.plan("photos/", backbone="swin_base_w14", trainer={"devices": 8}))

    Nothing is started, and no image is read. With `timed` a few steps and batches say how long an epoch takes.
    """
    from esvit_pl.configs import plan as planning

    overrides, _ = _callback_objects(overrides)
    words = settings({"backbone": backbone, "trainer.max_epochs": epochs}, overrides)
    cfg, choices, images, _ = _prepared("pretrain", data, words)
    _need("pretrain", cfg, choices, images, ())
    with nothing_left_behind():
        return planning.make(cfg, images, timed=timed)


def evaluate(
    ckpt_path: str | os.PathLike[str],
    data: Any = None,
    out: str | os.PathLike[str] | None = None,
    *,
    probes: Sequence[str | Evaluator] = ("knn",),
    epochs: int | None = None,
    knn: Mapping[str, Any] | None = None,
    linear: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Result:
    """Measure a checkpoint's frozen backbone: ``esvit-knn``, ``esvit-linear`` and ``esvit-dense`` as a function.

        run = esvit_pl.evaluate(run.checkpoint, "photos/", probes=["knn", "linear"], linear={"lr": [0.001, 0.01]})
        run.metrics["knn/top1"], run.metrics["linear/top1"]
        run = esvit_pl.evaluate(run.checkpoint, "photos/", probes=["rankme", "few_shot", Mine()], few_shot={"n": [1]})
        run.metrics["few_shot/top1"], run.results["rankme"]["untrained"]

    Args:
        ckpt_path: a checkpoint of `pretrain`.
        data: as in `pretrain`; labelled. Left out, the images of the checkpoint's own training.
        out: folder, with one folder inside for each probe; by default a new one, ``logs/evaluate/runs/<time>``.
        probes: names of the options of ``evaluator`` ("knn", "linear", "logistic", "few_shot", "rankme", ...), and
            `evaluation.Evaluator` objects. Those of yours are called by their class: ``MySpread()`` is "my_spread".
            "segmentation_knn", "keypoints" and their like need the name of a data set with masks or keypoints as
            `data`: ``"voc2012"``, with ``dataset={"root": ...}``.
        epochs: length of the linear probe.
        knn: settings of the k-NN, such as ``{"k": [20, 100]}``.
        linear: settings of the linear probe, such as ``{"lr": [0.01, 0.1], "last_blocks": 4}``.
        overrides: settings of any other probe under its name, ``few_shot={"n": [1]}``; and every other setting of the
            commands, as in `pretrain`: ``trainer="gpu"``. Images are prepared as in the training of the checkpoint,
            unless ``augment`` says otherwise.

    Raises:
        ValueError: there is no such probe (near ones are named), settings are given for one that is not asked by name,
            or a command would refuse them.
    """
    from esvit_pl.commands import dense as dense_job
    from esvit_pl.commands import knn as knn_job
    from esvit_pl.commands import linear as linear_job
    from esvit_pl.evaluation.names import PROBES
    from esvit_pl.runs.folder import RunFolder
    from esvit_pl.runs.pictures import draw_comparison
    from esvit_pl.runs.result import Result

    check_not_in_a_copy("evaluate")
    asked = _probes(probes)
    own = {"knn": knn, "linear": linear} | {
        name: overrides.pop(name) for name in options("evaluator") if name in overrides
    }
    for name, values in own.items():
        if values and (name not in asked or asked[name].built is not None):
            raise ValueError(f"{name}={values!r} are settings of a probe that probes={probes!r} does not name")
    prepared: dict[str, DictConfig] = {}
    images = None
    for name, probe in asked.items():
        place = f"evaluation.{name}" if probe.command == "dense" else "module"
        words = settings({"ckpt_path": Path(ckpt_path), **probe.words(epochs)}, {place: own.get(name) or {}}, overrides)
        if probe.command == "dense" and not isinstance(data, str):
            raise ValueError(
                f"{name} needs the name of a data set with masks or keypoints as data, such as 'voc2012', and "
                f"dataset={{'root': FOLDER}}, got {data!r}"
            )
        cfg, choices, images, _ = _prepared(probe.command, data, words, images)
        _need(probe.command, cfg, choices, images, ("ckpt_path",))
        if cfg.datamodule.num_workers != 0:
            check_guard("evaluate", images)
        if probe.built is not None:
            OmegaConf.update(cfg, place, {}, merge=False)  # its settings are the caller's
        prepared[name] = cfg
    with _folder("evaluate", out, next(iter(prepared.values()))) as folder:
        claim = claimed(folder)
        if claim is not None:
            claim.clear()
        finished: dict[str, Result] = {}
        for name, cfg in prepared.items():
            probe = asked[name]
            cfg.paths.output_dir = str(folder / (name if probe.option else f"{OWN_PROBE}{name}"))
            with nothing_left_behind():
                if probe.command == "dense":
                    finished[name] = dense_job.evaluate(cfg, None if probe.built is None else {name: probe.built})
                elif probe.command == "linear":
                    finished[name] = linear_job.evaluate(cfg, images)
                else:
                    finished[name] = knn_job.evaluate(cfg, images, name, probe.built)
        metrics = {key: value for run in finished.values() for key, value in run.metrics.items()}
        table = {name: run.results[name] for name, run in finished.items()}
        about = {name: run.results["evaluation"] for name, run in finished.items()}
        summary = RunFolder(folder)
        summary.update(status="finished", **table, metrics=metrics, evaluation=about)
        if table.keys() & PROBES.keys():  # the others are no accuracies
            intervals = {name: its["intervals"].get(name) for name, its in about.items()}
            images = next(iter(about.values()))["images"]
            draw_comparison(folder / "figures", {**table, "evaluation": {"intervals": intervals, "images": images}})
    return Result(folder, next(iter(finished.values())).backbone, Path(ckpt_path), metrics)


class _Probe(NamedTuple):
    """What `evaluate` asks."""

    option: str | None
    """Its name in the group ``evaluator``; None for an object whose class no option names."""
    built: Evaluator | None
    """The object; None where the config builds it."""

    @property
    def command(self) -> str:
        """The command that asks it."""
        from esvit_pl.commands.dense import KEYPOINTS, SEGMENTATIONS

        if self.option in (*SEGMENTATIONS, *KEYPOINTS):
            return "dense"
        return "linear" if self.option == "linear" and self.built is None else "knn"

    def words(self, epochs: int | None) -> dict[str, Any]:
        """What the command must be told beside the probe's settings."""
        if self.command == "dense":
            return {"evaluation.probes": [self.option]}
        if self.command == "linear":
            return {"trainer.max_epochs": epochs}
        return {"evaluator@module": self.option}


def _probes(probes: Sequence[str | Evaluator]) -> dict[str, _Probe]:
    """{name in the results: probe}."""
    if isinstance(probes, str) or not isinstance(probes, Sequence) or not probes:
        raise ValueError(
            f"evaluate needs probes as a list of names and Evaluators, such as ['knn', 'rankme'], got {probes!r}"
        )
    asked: dict[str, _Probe] = {}
    for each in probes:
        if isinstance(each, str):
            check_probe(each)
            name, probe = each, _Probe(each, None)
        elif isinstance(each, type) or not hasattr(each, "run"):
            raise ValueError(f"probes takes names and Evaluators, such as ['knn', MySpread()], got {each!r}")
        else:
            probe = _Probe(option_of(each, "evaluator"), each)
            name = probe.option or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(each).__name__).lower()
        if name in asked:
            raise ValueError(f"probes has {name} twice; one probe can have several values: knn={{'k': [1, 20]}}")
        asked[name] = probe
    return asked


def embed(
    ckpt_path: str | os.PathLike[str],
    data: Any = None,
    out: str | os.PathLike[str] = "features.npz",
    **overrides: Any,
) -> Path:
    """Write a checkpoint's features of images to a file: ``esvit-embed`` as a function.

        path = esvit_pl.embed(run.checkpoint, "photos/", out="photos.npz", blocks=4)
        names, labels, features, about = esvit_pl.evaluation.load_features(path)
        features["pooled"], features["blocks4"]

    Args:
        ckpt_path: a checkpoint of `pretrain`, a released one, or the name of a timm model.
        data: as in `pretrain`. Left out, the images of the checkpoint's own training.
        out: .npz, .csv or .parquet (which needs pyarrow). What was stopped goes on with the same call.
        overrides: every other setting of the command: ``split="val"``, ``regions=True``, ``dtype="float16"``,
            ``overwrite=True``, ``trainer="gpu"``.
    """
    from esvit_pl.commands import embed as job

    check_not_in_a_copy("embed")
    words = settings({"ckpt_path": Path(ckpt_path), "out": Path(out)}, overrides)
    cfg, choices, images, _ = _prepared("embed", data, words)
    _need("embed", cfg, choices, images, ("ckpt_path",))
    if cfg.datamodule.num_workers != 0:
        check_guard("embed", images)
    with nothing_left_behind():
        return job.embed(cfg, images)


def _prepared(
    command: str, data: Any, words: list[str], images: Splits | None = None
) -> tuple[DictConfig, dict[str, Any], Splits | None, list[str]]:
    """Config, choices, the images where they were given as an object, and the words of which the config is made.

    Args:
        images: made of `data` before.
    """
    is_object = data is not None and not isinstance(data, (str, os.PathLike))
    if is_object:
        words = ["dataset=own", *words]
    elif data is not None:
        words = [*dataset_words(os.fspath(data)), *words]
    cfg, choices = composed(command, words)
    if is_object:
        images = images or _own_images(data, cfg)
    cfg, images = settled(cfg, words, lambda words: composed(command, words)[0], images)
    if is_object:
        with open_dict(cfg):  # a run's config names no data set that it cannot build
            del cfg["dataset"]
        choices.pop("dataset", None)
    return cfg, choices, images, words


def _own_images(data: Any, cfg: DictConfig) -> Splits:
    """The caller's data, read with the settings of ``dataset=own``, without what an experiment says of folders."""
    from esvit_pl.datasets import Reading, splits_of

    names = {"val_fraction", *(field.name for field in fields(Reading))}
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg.dataset))
    return splits_of(data, **{name: value for name, value in plain.items() if name in names})


def _callback_objects(overrides: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The settings without the objects among ``callbacks``, and these."""
    given = overrides.get("callbacks")
    if given is None or isinstance(given, (str, Mapping)):
        return overrides, []
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    names = [item for item in items if isinstance(item, str)]
    objects = [item for item in items if not isinstance(item, str)]
    for item in objects:
        if isinstance(item, type) or not hasattr(item, "on_train_batch_end"):
            raise ValueError(
                f"callbacks takes names of options and objects, such as ['default', MyCallback()], got {item!r}"
            )
    others = {key: value for key, value in overrides.items() if key != "callbacks"}
    return (others | {"callbacks": names} if names or not objects else others), objects


@contextmanager
def _folder(command: str, out: str | os.PathLike[str] | None, cfg: DictConfig) -> Iterator[Path]:
    """The folder of a run, which is this process's alone meanwhile.

    Raises:
        ValueError: it holds a run already, or another process writes there.
    """
    named = out or cfg.out
    resume_mode.settle(cfg, None if named is None else Path(named).expanduser())
    asked = named or (run_of(cfg.ckpt_path) if command == "pretrain" else None)
    by_time = Path(os.environ.get("ESVIT_LOG_DIR", "logs"), command, "runs", f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    folder = by_time if asked is None else Path(asked).expanduser()
    if not is_first_process():  # the first one holds the folder for all
        yield folder
        return
    if asked is None:
        claim = run_folder.claim_new(by_time)
    else:
        run_folder.refuse_images(cfg, folder)
        goes_on = command == "pretrain" and run_folder.keeps_what_is_in(cfg, folder)
        claim = Claim(folder, goes_on=goes_on, overwrite=run_folder.overwrites(cfg, folder))
    if claim.line is not None:
        say(claim.line)
    try:
        yield claim.folder
    finally:
        claim.release()


def _need(
    command: str, cfg: DictConfig, choices: Mapping[str, Any], images: Splits | None, keys: Sequence[str]
) -> None:
    missing = [key for key in keys if cfg.get(key) is None]
    if command == "pretrain" and images is None and cfg.get("dataset") is None:
        missing.append("data")
    if missing:
        raise ValueError(f"{command} needs {' and '.join(missing)}: a folder of images, or the name of a dataset")
    empty = OmegaConf.missing_keys(cfg)
    if empty:
        raise ValueError(f"no value for {', '.join(sorted(empty))}; give each as a setting")
    wrong = checks.problem(cfg, package=CONFIGS, config_name=command, choices=choices)
    if wrong is not None:
        raise ValueError(wrong)


def _note(folder: Path, words: Sequence[str]) -> None:
    """When the run begins: what was changed, where Hydra notes it for a command and ``esvit-table`` looks for it."""
    claim = claimed(folder)
    if claim is not None:

        def note(path: Path) -> None:
            (path / ".hydra").mkdir(parents=True, exist_ok=True)
            OmegaConf.save(OmegaConf.create(list(words)), path / ".hydra" / "overrides.yaml")

        claim.note = note


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Random generators, warning filters, log levels and the environment are afterwards as they were."""
    from esvit_pl.isolation import same_random_state

    loggers = {name: logging.getLogger(name).level for name in ("pytorch_lightning", "lightning_fabric")}
    environment = dict(os.environ)
    try:
        with same_random_state(), warnings.catch_warnings():
            yield
    finally:
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
