"""What leaves the machine with exported weights: settings and results on these lists. Everything else stays home."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import signature
from typing import Any

from esvit_pl import objectives
from esvit_pl.augment import Recipe
from esvit_pl.evaluation.names import PROBES, ROWS
from esvit_pl.secret_values import starred

_OBJECTIVES = [getattr(objectives, name) for name in objectives.__all__ if name.endswith("Objective")]
_OF_LOSSES = dict.fromkeys(
    name for made in (objectives.EsViTObjective, *_OBJECTIVES) for name in signature(made).parameters
)
SETTINGS: dict[str, tuple[str, ...]] = {
    "loss": ("_target_", *(name for name in _OF_LOSSES if name not in ("args", "kwargs", "settings"))),  # no ** names
    "optimizer": (
        *("_target_", "name", "lr", "lr_end", "lr_schedule", "warmup_epochs", "weight_decay", "weight_decay_end"),
        *("weight_decay_schedule", "decaying", "betas", "momentum", "trust", "rate_inside", "fused"),
    ),
    "module": (
        *("_target_", "momentum", "momentum_end", "momentum_schedule", "clip_grad", "clip_grad_of"),
        *("freeze_prototypes_epochs", "compile", "grad_checkpointing"),
    ),
    "augment": ("_target_", *(field.name for field in fields(Recipe))),
    "datamodule": ("batch_size", "reduced_decoding", "rand_augment"),
    "trainer": (
        *("max_epochs", "max_steps", "accumulate_grad_batches", "precision", "devices", "num_nodes", "sync_batchnorm"),
        "limit_train_batches",
    ),
    "dataset": (
        *("_target_", "layout", "labels", "val_fraction", "value_range", "background", "max_pixels", "on_bad_image"),
        *("bad_image_budget", "train_patches", "test_patches", "half", "seed"),
    ),
}
"""Group of the run's config -> its settings that an export tells, if they are `is_shareable`."""
WHOLE_RUN = ("seed", "start_epoch")
"""The same, of settings outside of groups."""
_WORD = re.compile(r"[\w.+-]{1,100}")


def shareable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's config that an export and its card may tell."""
    groups = {name: config.get(name) for name in SETTINGS}
    told = {
        name: _listed(group, SETTINGS[name]) for name, group in groups.items() if isinstance(group, Mapping) and group
    }
    return told | _listed(config, WHOLE_RUN)


def shareable_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's spec without arguments that name files or hold a secret; the weights are there without them."""
    return {name: value for name, value in spec.items() if name == "name" or is_shareable(value)}


def shareable_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """The accuracies and metrics of a run's results.json."""
    probes = {name: _numbers(results[name], ROWS) for name in PROBES if isinstance(results.get(name), Mapping)}
    metrics = results.get("metrics")
    if not isinstance(metrics, Mapping):
        return probes
    return {**probes, "metrics": _numbers(metrics, [name for name in metrics if re.fullmatch(r"[\w/.+-]+", name)])}


def is_shareable(value: Any) -> bool:
    """Whether a value is a number, true, false, null or one word that is no path and no token; or consists of such."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and is_shareable(name) and is_shareable(item) for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(is_shareable, value))
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None and starred(value) == value
    return value is None or isinstance(value, bool | int | float)


def _listed(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings and is_shareable(settings[name])}


def _numbers(values: Mapping[str, Any], names: Any) -> dict[str, float]:
    return {name: values[name] for name in names if isinstance(values.get(name), int | float)}
