"""The page that introduces a published backbone: how to load it, how it was trained, what it was measured at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from esvit_pl.evaluation.names import PROBES, ROWS

PRIVATE = ("paths", "hydra", "logger", "ckpt_path", "init_from", "root", "tags")
"""Settings that say where files lie on somebody's machine, or belong to an account."""
RECIPE = {
    "objective": ("loss._target_", "loss.view_weight", "loss.region_weight", "loss.region_start_epoch"),
    "heads": ("loss.num_prototypes", "loss.hidden_dim", "loss.out_dim"),
    "temperatures": ("loss.student_temp", "loss.teacher_temp_start", "loss.teacher_temp"),
    "optimizer": (
        "optimizer.name",
        "optimizer.lr",
        "optimizer.warmup_epochs",
        "optimizer.weight_decay",
        "optimizer.weight_decay_end",
    ),
    "teacher": ("module.momentum",),
    "length": ("trainer.max_epochs", "start_epoch"),
    "batch (per process)": ("datamodule.batch_size", "trainer.accumulate_grad_batches"),
    "crops": (
        "augment.num_global",
        "augment.global_size",
        "augment.global_scale",
        "augment.num_local",
        "augment.local_size",
        "augment.local_scale",
    ),
    "precision, seed": ("trainer.precision", "seed"),
}
"""Lines of the card's recipe -> settings of the run."""
PAPER = "[arXiv 2106.09785](https://arxiv.org/abs/2106.09785)"


def model_card(repo: str, description: Mapping[str, Any], *, architecture: str) -> str:
    """The card as Markdown, made of what is known and of nothing else.

    Args:
        repo: ``USER/REPO``.
        description: of the backbone, `safetensors_file.description`. Of its ``about`` these are shown, if they are
            there: ``network``, ``source``, ``format``, ``epoch``, ``config`` (a run's), ``results`` (its results.json).
        architecture: timm's name of it.
    """
    about = description.get("about") or {}
    config = about.get("config") or {}
    parts = [
        _head(),
        f"# {repo.rpartition('/')[2]}",
        _what(description, about),
        "## Use",
        _use(repo, architecture, description),
        "## Backbone",
        _bullets(description["backbone"]),
        "## Pretraining",
        _recipe(config, about),
        "## Data",
        _data(config),
        "## Results",
        _results(about.get("results") or {}),
    ]
    return "\n\n".join(parts) + "\n"


def shareable(config: Any) -> Any:
    """A run's config without what says where files lie on a machine: `PRIVATE`, and every absolute path."""
    if isinstance(config, Mapping):
        kept = {key: value for key, value in config.items() if key not in PRIVATE and not _is_place(value)}
        return {key: shareable(value) for key, value in kept.items()}
    if isinstance(config, Sequence) and not isinstance(config, str):
        return [shareable(value) for value in config if not _is_place(value)]
    return config


def _is_place(value: Any) -> bool:
    if isinstance(value, PurePath):
        return True
    return isinstance(value, str) and (
        value.startswith("~") or PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    )


def _head() -> str:
    tags = ["image-feature-extraction", "self-supervised-learning", "timm", "esvit"]
    return "\n".join(
        ["---", "library_name: timm", f"pipeline_tag: {tags[0]}", "tags:", *(f"- {t}" for t in tags), "---"]
    )


def _what(description: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    network = f"the {about['network']}'s backbone" if about.get("network") else "a backbone"
    source = f" of `{about['source']}`" if about.get("source") else ""
    epoch = f", after {about['epoch']} epochs" if about.get("epoch") is not None else ""
    text = (
        f"{description['backbone']['name']}: {network}{source}{epoch}. It gives features of images and has no "
        "classifier. Written by `esvit-convert` of esvit_pl."
    )
    objective = str(((about.get("config") or {}).get("loss") or {}).get("_target_"))
    if objective.endswith(".EsViTObjective") or about.get("format") == "released EsViT":
        text += f" Pretrained without labels, by the method of EsViT ({PAPER})."
    return text


def _use(repo: str, architecture: str, description: Mapping[str, Any]) -> str:
    lines = ["import timm", ""]
    if architecture.startswith("esvit_"):
        lines = ["import timm", "", f"import esvit_pl.backbones  # registers {architecture}", ""]
    lines.append(f'model = timm.create_model("hf-hub:{repo}", pretrained=True)')
    texts = [_code(lines)]
    if description["backbone"]["name"] == "swin":
        texts.append(
            "The layer norms of this Swin add 1e-6 to the variance, timm's 1e-5; "
            "`create_model(..., norm_layer=timm.layers.LayerNorm)` computes what was trained, to the last bit where "
            "all maps are multiples of the window. On other maps timm pads in another order than the training did; "
            "esvit_pl keeps that order:"
        )
    else:
        texts.append("Or, with regions and the transform for images:")
    lines = ["import esvit_pl", "", f'backbone = esvit_pl.load_backbone("hf-hub:{repo}")']
    texts.append(_code([*lines, "pooled, regions, grid = backbone(backbone.transform(image)[None])"]))
    augment = description.get("augment")
    if augment and augment["normalize"] != "dataset":
        texts.append(
            f"Images were standardised each by itself (`normalize: {augment['normalize']}`), which timm's transforms "
            "cannot do; take `backbone.transform`."
        )
    return "\n\n".join(texts)


def _recipe(config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    lines = [(name, list(_settings(config, keys))) for name, keys in RECIPE.items()]
    shown = [f"- {name}: {', '.join(settings)}" for name, settings in lines if settings]
    if not shown:
        return f"Not told by {about.get('source') or 'the checkpoint'}."
    return "\n".join(shown)


def _settings(config: Mapping[str, Any], keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        value: Any = config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            yield f"`{value}`" if key.endswith("_target_") else f"{key.rpartition('.')[2]} {_plain(value)}"


def _data(config: Mapping[str, Any]) -> str:
    dataset = shareable(config.get("dataset") or {})
    if not dataset:
        return "Not told by the checkpoint."
    name = str(dataset.pop("_target_", "")).rpartition(".")[2]
    settings = "".join(f", {key} {_plain(value)}" for key, value in dataset.items() if value is not None)
    return f"`{name}`{settings}. The images' labels were used for the results below alone."


def _results(results: Mapping[str, Any]) -> str:
    probes = [name for name in PROBES if isinstance(results.get(name), Mapping) and results[name]]
    if not probes:
        return "No results lie beside the checkpoint."
    rows = [row for row in reversed(ROWS) if any(row in results[probe] for probe in probes)]
    titles = [f"{PROBES[probe]} top-1" for probe in probes]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---|' * len(probes)}"]
    for row in rows:
        cells = (f"{100 * results[probe][row]:.1f} %" if row in results[probe] else "" for probe in probes)
        lines.append(f"| {ROWS[row].card} | {' | '.join(cells)} |")
    return "\n".join(["As measured by the training run, on its own query images:", "", *lines])


def _bullets(settings: Mapping[str, Any]) -> str:
    return "\n".join(f"- {key}: {_plain(value)}" for key, value in settings.items())


def _plain(value: Any) -> str:
    return re.sub(r"[\[\]()'\"]", "", str(value)) if isinstance(value, Sequence) else str(value)


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])
