"""Whether a training may go on from a checkpoint: every setting that enters the training is compared.

A setting matters unless it stands in `NEVER_MATTERS`. Batch, data and length of an epoch are compared by what they come
to: images in a step, the images themselves, steps in an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esvit_pl.secret_values import starred
from esvit_pl.specs import plain

# Settings, or whole groups of them, that leave the trained weights as they are (up to rounding).
NEVER_MATTERS = (
    # where a run goes, what it is called, what it begins with: a resumed training has begun already
    *("paths", "hydra", "out", "overwrite", "resume", "ckpt_path", "init_from", "start_epoch", "backbone.init"),
    *("init.network", "init.heads", "init.resize_positions"),
    *("tags", "dry_run", "logger", "chosen"),
    # what is measured
    *("evaluation", "optimized_metric", "datamodule.eval_batch_size"),
    *("augment.eval_resize", "augment.eval_crop", "augment.eval_interpolation", "augment.eval_squash"),
    *("augment.supervised_size", "augment.supervised_scale", "datamodule.rand_augment"),
    # how the same numbers are computed
    *("datamodule.num_workers", "datamodule.persistent_workers", "datamodule.pin_memory", "datamodule.color_on"),
    "datamodule.timeout",
    *("module.compile", "module.grad_checkpointing", "optimizer.fused"),
    *("trainer.accelerator", "trainer.strategy", "trainer.plugins", "trainer.benchmark", "trainer.deterministic"),
    # what is shown, checked, logged; when it ends early
    *("trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.profiler"),
    *("trainer.enable_checkpointing", "trainer.detect_anomaly", "trainer.default_root_dir", "trainer.barebones"),
    *("trainer.num_sanity_val_steps", "trainer.check_val_every_n_epoch", "trainer.val_check_interval"),
    *("trainer.limit_val_batches", "trainer.limit_test_batches", "trainer.limit_predict_batches"),
    *("trainer.max_time", "trainer.min_epochs", "trainer.min_steps", "trainer.inference_mode"),
    # compared by the images that they give
    *("dataset._target_", "dataset.root", "dataset.file", "dataset.download", "dataset.layout", "dataset.labels"),
    *("dataset.index", "dataset.val_fraction", "dataset.max_pixels", "datamodule.train_subset"),
)
# Compared together: the images of one optimizer step.
_BATCH = ("datamodule.batch_size", "trainer.devices", "trainer.num_nodes", "trainer.accumulate_grad_batches")
_LIMIT = "trainer.limit_train_batches"  # compared by the steps of an epoch
# Callbacks that look on. Any other callback may change the training.
_WATCHING = (
    "esvit_pl.callbacks.",
    *(
        f"pytorch_lightning.callbacks.{name}"
        for name in (
            *("ModelCheckpoint", "OnExceptionCheckpoint", "LearningRateMonitor", "DeviceStatsMonitor", "Timer"),
            *("TQDMProgressBar", "RichProgressBar", "ModelSummary", "RichModelSummary", "ThroughputMonitor"),
        )
    ),
)
_MISSING = "not set"
_NOTES = {
    "optimizer.name": "its moments do not fit another optimizer, so this cannot be allowed",
    "trainer.max_epochs": "another length has other schedules: learning rate, weight decay, the teacher's momentum",
    "trainer.max_steps": "another length has other schedules: learning rate, weight decay, the teacher's momentum",
}


@dataclass(frozen=True)
class Difference:
    """One thing in which two trainings differ.

    Attributes:
        keys: settings, any of which allows it in ``resume.allow``.
        name: what differs, for people.
        was: in the checkpoint.
        now: in this training.
        note: what the user should know about it.
    """

    keys: tuple[str, ...]
    name: str
    was: Any
    now: Any
    note: str = ""

    @property
    def may_be_allowed(self) -> bool:
        return self.name != "optimizer.name"

    def is_allowed(self, allow: Sequence[str]) -> bool:
        """Whether one of the entries of ``resume.allow`` names it, or a group that holds it."""
        return self.may_be_allowed and any(is_in(key, entry) for key in self.keys for entry in allow)

    def __str__(self) -> str:
        was, now = (_shown(starred(value, self.name)) for value in (self.was, self.now))
        line = f"{self.name}: {was} in the checkpoint, {now} now"
        return f"{line} ({self.note})" if self.note else line


@dataclass(frozen=True)
class Batches:
    """How the images of a training come in steps: what `ImageDataModule.state_dict` holds, and Lightning's limit.

    >>> Batches(images=100, batch_size=8, ranks=2, accumulate=1, limit=None).steps_per_epoch
    6
    """

    images: int
    batch_size: int
    ranks: int
    accumulate: int
    limit: int | float | None

    @property
    def window(self) -> int:
        """Images of one optimizer step."""
        return self.batch_size * self.ranks * self.accumulate

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of one process in an epoch."""
        batches = self.images // self.window * self.accumulate
        if self.limit is None:
            return batches
        return min(batches, self.limit) if isinstance(self.limit, int) else int(batches * self.limit)

    @property
    def steps_per_epoch(self) -> int:
        return max(self.batches_per_epoch // self.accumulate, 1)

    def __str__(self) -> str:
        return f"{self.window} ({self.batch_size} x {self.ranks} processes x {self.accumulate} accumulated)"


def lacking(content: Mapping[str, Any]) -> list[str]:
    """What a checkpoint lacks to go on with its training, in words: weights alone lack everything.

    >>> lacking({"global_step": 3, "loops": {}, "pytorch-lightning_version": "2.6"})
    ['the counters of the loops', 'the state of an optimizer', 'the state of the schedules']
    """
    optimizers = content.get("optimizer_states")
    names = content.get("esvit_pl", {}).get("parameters")
    groups = optimizers[0].get("param_groups", []) if optimizers else []
    whole = bool(groups) and (names is None or sum(len(group["params"]) for group in groups) == len(names))
    there = {
        "the number of steps": "global_step" in content,
        "the counters of the loops": "fit_loop" in content.get("loops", ()),
        "the state of an optimizer": bool(optimizers),
        "a part of the optimizer's state": whole or not optimizers,
        "the state of the schedules": "lr_schedulers" in content,
        "the version of Lightning": "pytorch-lightning_version" in content,
    }
    return [what for what, is_there in there.items() if not is_there]


def setting_differences(
    was: Mapping[str, Any], now: Mapping[str, Any], specs: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> list[Difference]:
    """The settings that matter and differ, batch and length of an epoch left out.

    A config that is older may not name a setting; then the parts' specs are compared, or the setting had its default.

    Args:
        was: config of the checkpoint, as plain Python.
        now: config of this training.
        specs: ``{"backbone": {...}, "loss": {...}}``, the specs of the parts, then and now.
        defaults: {dotted key: value}, the defaults of the signatures.
    """
    configs = [mattering(tree, was, now) for tree in (was, now)]
    built = [{key: plain(value) for key, value in flat(tree)} for tree in specs]
    found = []
    for key in dict.fromkeys([*configs[1], *configs[0]]):
        if key.startswith("dataset.") and not (was.get("dataset") and now.get("dataset")):
            continue  # given as an object; the images are compared
        sides = built if any(key not in side for side in configs) and all(key in side for side in built) else configs
        before, after = (side.get(key, plain(defaults.get(key, _MISSING))) for side in sides)
        if key.endswith("_target_"):
            before, after = (str(value).rpartition(".")[2] for value in (before, after))  # a class may have moved
        unset = before in (None, _MISSING) and after in (None, _MISSING)
        if before != after and not unset:
            found.append(Difference((key,), key, before, after, _NOTES.get(key, "")))
    return found


def batch_differences(
    was: Batches, now: Batches, was_config: Mapping[str, Any], now_config: Mapping[str, Any]
) -> list[Difference]:
    """The images of a step and the steps of an epoch, where they differ."""
    old, new = dict(flat(was_config)), dict(flat(now_config))
    found = []
    if was.window != now.window:
        keys = tuple(key for key in _BATCH if old.get(key) != new.get(key)) or _BATCH
        found.append(Difference(keys, f"images in a step ({', '.join(keys)})", str(was), str(now)))
    elif was.steps_per_epoch != now.steps_per_epoch and was.images == now.images:
        name = f"steps in an epoch ({_LIMIT})"
        found.append(Difference((_LIMIT,), name, was.steps_per_epoch, now.steps_per_epoch))
    return found


def image_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Number and names of the images, from two `ImageDataModule.state_dict`."""
    if was["images"] != now["images"]:
        return [Difference(("dataset",), "training images (dataset)", was["images"], now["images"])]
    if was["names"] != now["names"]:
        name, number = "names of the training images (dataset)", f"{was['images']} images"
        return [Difference(("dataset",), name, number, "as many others")]
    return []


def mattering(config: Mapping[str, Any], *configs: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of the settings that enter a training.

    Args:
        config: of the training.
        configs: beside it, which may say what a callback is.
    """
    targets = {f"callbacks.{name}": target for tree in (config, *configs) for name, target in _callbacks(tree)}
    return {key: plain(value) for key, value in flat(config) if _matters(key, targets)}


def content_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The content of images that have kept their names, from two `ImageDataModule.state_dict`; older ones have none."""
    both = [state.get("content") for state in (was, now)]
    if None in both or both[0] == both[1] or image_differences(was, now):
        return []
    return [Difference(("dataset",), "content of the training images (dataset)", "one", "another under the same names")]


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; a list is one."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{key}.")
        else:
            yield key, value


def _matters(key: str, callbacks: Mapping[str, str]) -> bool:
    if key in (*_BATCH, _LIMIT) or any(is_in(key, group) for group in NEVER_MATTERS):
        return False
    target = next((target for name, target in callbacks.items() if is_in(key, name)), "")
    watches = any(target == known or (known.endswith(".") and target.startswith(known)) for known in _WATCHING)
    return not watches and (bool(target) or not is_in(key, "callbacks"))


def is_in(key: str, group: str) -> bool:
    """Whether a setting is this one, or one of this group."""
    return key == group or key.startswith(f"{group}.")


def _callbacks(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, target) of every callback in a config."""
    for name, node in (config.get("callbacks") or {}).items():
        if isinstance(node, Mapping) and "_target_" in node:
            yield name, str(node["_target_"])


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
