"""``esvit-evaluate``: all probes of several checkpoints, in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf

from esvit_pl.commands import evaluation
from esvit_pl.configs import evaluated_images, weights
from esvit_pl.configs.command_line import command, requires
from esvit_pl.configs.several import named
from esvit_pl.safe_text import file_name

if TYPE_CHECKING:
    from torch import Tensor

    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.checkpoints import Checkpoint
    from esvit_pl.datasets import Splits
    from esvit_pl.evaluation import Evaluator
    from esvit_pl.runs.comparison import Answer, Comparison
    from esvit_pl.runs.transfer import Transfer

EXAMPLES = [
    "esvit-evaluate ckpt_path=RUN evaluation.probes=[knn,linear,logistic]      # on the images of its training",
    "esvit-evaluate ckpt_path=[RUN,OTHER] dataset=folder dataset.root=photos/ out=compared",
    'esvit-evaluate "ckpt_path={before:swin_tiny_patch4_window7_224.ms_in1k,after:RUN}" dataset=folder '
    "dataset.root=photos/",
    "esvit-evaluate ckpt_path=RUN suite=quick root=data/ supervised=swin_tiny_patch4_window7_224.ms_in1k",
]


class Row(NamedTuple):
    """An encoder of the table."""

    title: str
    encoder: Backbone
    recipe: Recipe
    source: Checkpoint


@command(
    "evaluate",
    summary="all probes of several checkpoints, in one table.",
    examples=EXAMPLES,
    needs=requires("esvit-evaluate", "ckpt_path"),
    refuses=partial(evaluated_images.refuse_experiment, "esvit-evaluate"),
)
def main(cfg: DictConfig) -> None:
    from esvit_pl.configs.processes import is_first_process

    if cfg.suite is not None:
        from esvit_pl.commands.suites import transfer

        compared: Comparison | Transfer = transfer(cfg)
    else:
        compared = evaluate(cfg)
    if is_first_process():
        files = compared.write(Path(cfg.out))
        parts = [compared.text(), *filter(None, ["\n".join(compared.sentences())]), "\n".join(map(str, files))]
        weights.say("\n" + "\n\n".join(parts))


def evaluate(cfg: DictConfig, images: Splits | None = None) -> Comparison:
    """The whole job but for the files of the table.

    Args:
        images: in place of ``cfg.dataset``.
    """
    from esvit_pl.commands import results
    from esvit_pl.configs import assemble, trainers
    from esvit_pl.runs.comparison import Comparison

    trainers.check_devices(cfg)
    rows = subjects(cfg, take_dataset=images is None)
    splits = images or assemble.construct(cfg, "dataset")
    probes = results.probes_of(cfg, labelled=splits.has_labels)
    for row in rows:
        results.check(probes, row.encoder, results.num_classes(splits))
    mode = results.baselines_mode(cfg)
    beside = baselines(cfg, rows[0], labelled=splits.has_labels) if mode else []
    few = {name: probe for name, probe in probes.items() if not (mode == "auto" and getattr(probe, "trains", False))}
    found = {row.title: answers(cfg, row, few, splits) for row in beside}
    found |= {row.title: answers(cfg, row, probes, splits) for row in rows}
    groups = None if cfg.groups is None else groups_of(splits, str(cfg.groups))
    return Comparison(found, groups, [row.title for row in rows])


def subjects(cfg: DictConfig, *, take_dataset: bool) -> list[Row]:
    """The backbones of ``ckpt_path``, each with its own preparation.

    Args:
        take_dataset: choose the images of the first one's training where ``dataset`` names none.
    """
    from esvit_pl.configs import assemble

    rows: list[Row] = []
    for title, path in named(cfg.ckpt_path).items():
        one = cast(DictConfig, OmegaConf.merge(cfg, {"ckpt_path": path}))
        source = weights.evaluated(one)
        backbone = weights.frozen_backbone(one, source)
        if take_dataset and not rows and (line := evaluated_images.take_dataset(cfg, source, "esvit-evaluate")):
            weights.say(line)
        recipe, line = evaluated_images.preparation(one, source)
        assemble.check_channels(recipe, backbone)
        weights.say(f"{title}: {line}")
        rows.append(Row(title, backbone, recipe, source))
    return rows


def baselines(cfg: DictConfig, row: Row, *, labelled: bool) -> list[Row]:
    """What a backbone is compared with: features that nobody learnt; without labels the untrained backbone alone."""
    from esvit_pl.evaluation import GreyHistogram, RawPixels
    from esvit_pl.evaluation.names import ROWS

    encoders: dict[str, Backbone] = {}
    if labelled:
        side = min(row.recipe.eval_crop, 32)
        encoders = {"raw_pixels": RawPixels(side, channels=row.recipe.channels), "histogram": GreyHistogram()}
    encoders["untrained"] = evaluation.untrained(cfg, row.source, row.encoder)
    return [row._replace(title=ROWS[name].table, encoder=encoder) for name, encoder in encoders.items()]


def answers(
    cfg: DictConfig, row: Row, probes: Mapping[str, Evaluator], splits: Splits, kept_in: Path | None = None
) -> dict[str, Answer]:
    """The answers of all probes about one encoder. Those in ``out`` are read, the others are measured and kept there.

    Args:
        kept_in: in place of ``out/measured``.

    Raises:
        ValueError: an answer that lies there belongs to other weights, images or settings.
    """
    from esvit_pl.commands import results
    from esvit_pl.configs import assemble, trainers
    from esvit_pl.configs.processes import is_first_process
    from esvit_pl.evaluation import InTurn
    from esvit_pl.modules import Evaluation

    origin = evaluation.origin(cfg, row.encoder, row.recipe, splits.bank, splits.query)
    home = (kept_in or Path(cfg.out) / "measured") / file_name(row.title)
    files = {name: home / f"{name}.json" for name in probes}
    about = {name: {**origin, "settings": assemble.plain(cfg.evaluation[name])} for name in probes}
    found = {name: kept for name in probes if (kept := read(files[name], about[name], replaces=cfg.overwrite))}
    if found:
        weights.say(f"{row.title}: measured before: {', '.join(found)}")
    missing = {name: probe for name, probe in probes.items() if name not in found}
    if missing:
        weights.say(f"{row.title}: {', '.join(missing)} ...")

        def done(name: str, numbers: dict[str, float], right: dict[str, Tensor]) -> None:
            found[name] = kept = answer(numbers, right)
            if is_first_process():
                write(files[name], about[name], kept)

        cache = evaluation.feature_cache(cfg, row.encoder, row.recipe, splits)
        trainer = trainers.quiet(cfg, bar=cfg.trainer.enable_progress_bar)
        data = assemble.datamodule(cfg, splits, row.recipe, **results.supervised(splits))
        if any(getattr(probe, "trains", False) for probe in missing.values()):
            results.fit_batch(data, trainer)
        trainer.validate(Evaluation(row.encoder, InTurn(missing, done), cache=cache), data, verbose=False)
        row.encoder.cpu()
    return {name: found[name] for name in probes}


def answer(numbers: Mapping[str, float], right: Mapping[str, Tensor]) -> Answer:
    from esvit_pl.runs.comparison import Answer

    return Answer(numbers, {metric: each.numpy() for metric, each in right.items()})


def write(file: Path, about: Mapping[str, Any], kept: Answer) -> None:
    """One answer with what it depends on; which images are right as a text of 0 and 1."""
    from esvit_pl.whole import replacing

    right = {metric: "".join("01"[each] for each in values.tolist()) for metric, values in kept.right.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as draft:
        content = {"about": about, "numbers": kept.numbers, "right": right}
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(file: Path, about: Mapping[str, Any], *, replaces: bool) -> Answer | None:
    """The answer that was kept; None if there is none, or if it is one of something else and is to be replaced."""
    import numpy as np

    from esvit_pl.evaluation.stored import differing
    from esvit_pl.runs.comparison import Answer

    if not file.is_file():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    different = differing(kept["about"], about)
    if different and replaces:
        return None
    if different:
        name, old, new = different
        raise ValueError(
            f"{file} was measured with {name} {old}, and now {name} {new} came; out= names another folder, and "
            "overwrite=true measures it anew"
        )
    right = {metric: np.array([sign == "1" for sign in text]) for metric, text in kept["right"].items()}
    return Answer(kept["numbers"], right)


def groups_of(splits: Splits, pattern: str) -> list[str]:
    """To which group each query image belongs: what `pattern` matches at the beginning of its name."""
    found = []
    for index in range(len(splits.query)):
        name = splits.query.name(index)
        match = re.match(pattern, name)
        if match is None:
            raise ValueError(f"groups={pattern} does not match the name {name}")
        found.append(match[1] if match.re.groups else match[0])
    return found


if __name__ == "__main__":
    main()
