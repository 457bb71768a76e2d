"""A sentence for each mistyped setting: which one is similar, or is called so elsewhere. Hydra only says: wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path


@dataclass(frozen=True)
class ConfigSpace:
    """The names that a command accepts.

    Attributes:
        groups: group -> its options, e.g. ``{"backbone": ["swin_tiny_w7", ...]}``.
        keys: dotted names of every node of the composed config, e.g. ``trainer.max_epochs``.
        unchosen: groups without a chosen option, which have no keys yet.

    >>> space = ConfigSpace(keys=["trainer.max_epochs", "optimizer.lr"])
    >>> explain_setting("trainer.max_epoch=3", space)
    'trainer.max_epoch=3: did you mean trainer.max_epochs=3?'
    """

    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    keys: Sequence[str] = ()
    unchosen: Sequence[str] = ()


_LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm")
# Settings that need a plugin from the extra `sweep` -> the group and option that the plugin adds to Hydra.
_PLUGINS = {
    **{f"hydra/launcher={name}": ("hydra/launcher", name) for name in _LAUNCHERS},
    "hydra/sweeper=optuna": ("hydra/sweeper", "optuna"),
    "hparams_search=optuna": ("hydra/sweeper", "optuna"),
}


# What other programs call a setting or an option -> what it is called here.
_KEYS = {
    "arch": "backbone",
    "architecture": "backbone",
    "batch": "datamodule.batch_size",
    "batch_size_per_gpu": "datamodule.batch_size",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "crop_size": "augment.global_size",
    "data": "dataset",
    "data_dir": "dataset.root",
    "data_path": "dataset.root",
    "epoch": "trainer.max_epochs",
    "epochs": "trainer.max_epochs",
    "folder": "dataset.root",
    "gpu": "trainer.devices",
    "gpus": "trainer.devices",
    "images": "dataset.root",
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "mixed_precision": "trainer.precision",
    "model": "backbone",
    "nodes": "trainer.num_nodes",
    "num_epochs": "trainer.max_epochs",
    "optim": "optimizer",
    "output": "out",
    "output_dir": "out",
    "path": "dataset.root",
    "precision": "trainer.precision",
    "pretrained": "init_from",
    "resume": "ckpt_path",
    "root": "dataset.root",
    "warmup": "optimizer.warmup_epochs",
    "wd": "optimizer.weight_decay",
    "weights": "init_from",
    "workers": "datamodule.num_workers",
}
_OPTIONS = {
    "backbone": {
        "swin": "swin_tiny_w7",
        "swin_t": "swin_tiny_w7",
        "swin_s": "swin_small_w7",
        "swin_b": "swin_base_w7",
        "swin_l": "swin_large_w7",
        "vit_small": "deit_small_p16",
        "vit_base": "vit_base_p16",
        "resnet": "resnet50",
    },
    "loss": {
        "dino": "view",
        "esvit": "view_region",
        "both": "view_region",
        "region": "view_region",
        "moco": "mocov3",
        "moco_v3": "mocov3",
    },
    "optimizer": {"adam": "adamw"},
    "trainer": {"cuda": "gpu", "mps": "default", "auto": "default"},
    "logger": {"tb": "tensorboard", "null": "none"},
    "dataset": {"imagefolder": "folder", "image_folder": "folder", "imagenet1k": "imagenet", "cifar": "cifar10"},
}


def near(word: str, options: Iterable[str]) -> list[str]:
    """The options most similar to ``word``, best first: up to three of about the same similarity, or none."""
    score = {option: SequenceMatcher(None, option.lower(), word.lower()).ratio() for option in options}
    best = max(score.values(), default=0.0)
    found = [option for option, value in score.items() if value >= max(0.6, best - 0.06)]
    return sorted(found, key=lambda option: -score[option])[:3]


def near_keys(key: str, space: ConfigSpace) -> list[str]:
    """Names similar to ``key``. A right name in a wrong place counts: ``max_epochs`` finds ``trainer.max_epochs``."""
    known = [*space.groups, *space.keys]
    if _KEYS.get(key) in known:
        return [_KEYS[key]]
    above, _, last = key.rpartition(".")
    moved = sorted(
        (other for other in space.keys if other.rpartition(".")[2] == last), key=lambda other: other.count(".")
    )
    beside = [other.rpartition(".")[2] for other in space.keys if above and other.rpartition(".")[0] == above]
    if moved or not beside:
        group = key.partition(".")[0]
        inside = [name for name in known if name.startswith(f"{group}.")] if above and group in known else known
        return moved[:3] or near(key, dict.fromkeys(inside))
    return [f"{above}.{name}" for name in near(last, beside)]


def near_paths(path: str) -> list[str]:
    """What lies where `path` should, under a similar name; folders end with a slash."""
    given = Path(path).expanduser()
    parent = given
    rest: list[str] = []
    while not parent.exists() and parent != parent.parent:
        rest.insert(0, parent.name)
        parent = parent.parent
    try:
        there = {entry.name: entry for entry in parent.iterdir()} if rest and parent.is_dir() else {}
    except OSError:
        return []
    found = (there[name].joinpath(*rest[1:]) for name in near(rest[0], there)) if rest else ()
    return [f"{path}{'/' if path.is_dir() else ''}" for path in found if path.exists()]


def explain_setting(setting: str, space: ConfigSpace) -> str | None:
    """One line about a wrong ``key=value`` of the command line; None if nothing looks wrong."""
    if setting.startswith("~"):
        key = setting[1:].partition("=")[0]
        if key in space.keys or key in space.groups:
            return None
        return _did_you_mean(f"~{key}", [f"~{name}" for name in near_keys(key, space)]) or f"~{key}: there is no {key}"
    group, option = _PLUGINS.get(setting, ("", ""))
    if option not in space.groups.get(group, [option]):
        return f"{setting}: a plugin of Hydra is not installed; pip install 'esvit_pl[sweep]'"
    key, equals, value = setting.lstrip("+").partition("=")
    key, at, package = key.partition("@")  # `group@package=option`
    if not equals:
        return _explain_bare_word(key, space)
    if key in space.groups:
        return _explain_option(f"{key}{at}{package}", value, space.groups[key])
    if setting.startswith("+"):
        again = setting.lstrip("+")
        return f"{setting}: {key} exists already; write {again}" if setting[1] != "+" and key in space.keys else None
    group, _, below = key.partition(".")
    if key in space.keys or (group == "hydra" and below):  # Hydra's own settings are not in the tree
        return None
    if group in space.unchosen:
        return _unchosen(setting, group, value, space)
    above = key.rpartition(".")[0]
    if above in space.keys and not any(name.startswith(f"{above}.") for name in space.keys):
        return f"{setting}: {above} is a single value here and has no settings of its own"
    found = near_keys(key, space)
    if found and found[0] in space.groups:
        options = _as_option(found[0], value, space)
        return f"{setting}: write {options}" if options else _choices(setting, found[0], space.groups[found[0]])
    return _did_you_mean(setting, [_with_value(name, value, space) for name in found]) or _no_such_key(
        key, value, space
    )


def explain_flag(flag: str, flags: Sequence[str], after: str = "", space: ConfigSpace | None = None) -> str | None:
    """One line about a word with leading dashes that is not a flag; None for a flag that exists.

    Args:
        after: the next word of the command line, which may be meant as the flag's value.
        space: for the settings that the flag may mean.
    """
    name, equals, value = flag.partition("=")
    if name in flags:
        return None
    key = name.lstrip("-").replace("-", "_")
    close = near(name, flags)
    value, given = (value, flag) if equals else (after, f"{flag} {after}".strip())
    word = f"{key}={value}"
    if space is None or key in space.keys or key in space.groups:
        return f"{given}: settings have no dashes; write {word}" if value or not close else _did_you_mean(name, close)
    found = near_keys(key, space)
    if close and not equals and not (key in _KEYS or any(other.rpartition(".")[2] == key for other in found)):
        return _did_you_mean(name, close)
    if not found:
        return f"{given}: there is no such flag; --help lists flags and choices, --cfg job every setting"
    return f"{given}: settings have no dashes; write {' or '.join(_with_value(name, value, space) for name in found)}"


def _explain_bare_word(word: str, space: ConfigSpace) -> str | None:
    if not word.strip():
        return "one of the words is empty; was it a variable of the shell that is not set?"
    choices = [f"{group}={option}" for group, options in space.groups.items() for option in options if option == word]
    if choices:
        return f"{word}: write {' or '.join(choices)}"
    if word in space.keys or word in space.groups:
        return f"{word}: needs a value; write {word}=..."
    key, colon, value = word.partition(":")
    if colon and (key in space.keys or key in space.groups):
        return f"{word}: write {key}={value}"
    if "ckpt_path" in space.keys and (Path(word).expanduser() / "checkpoints").is_dir():
        return f"{word}: write ckpt_path={word}"
    if "dataset" in space.groups and (Path(word).expanduser().is_dir() or word.endswith(("/", "\\"))):
        return f"{word}: write {_folder(word)}"
    if "ckpt_path" in space.keys and word.endswith((".ckpt", ".pth", ".pt", ".safetensors")):
        return f"{word}: write ckpt_path={word}"
    options = near(
        word, dict.fromkeys(option for name, all_ in space.groups.items() if "/" not in name for option in all_)
    )
    close = [
        f"{group}={option}"
        for option in options
        for group, all_ in space.groups.items()
        if option in all_ and "/" not in group
    ]
    return _did_you_mean(word, close) or f"{word}: not of the form name=value"


def _explain_option(group: str, value: str, options: Sequence[str]) -> str | None:
    for option in _values(value) or ("",):
        if option in options:
            continue
        if group == "dataset" and ("/" in option or "\\" in option or Path(option).is_dir()) and option:
            return f"{group}={value}: is a folder; write {_folder(option)}"
        known = _OPTIONS.get(group, {}).get(option.lower())
        if known in options:
            return f"{group}={option}: is called {known} here; write {group}={known}"
        found = near(option, options)
        close = _did_you_mean(f"{group}={option}", [f"{group}={name}" for name in found])
        return close or _choices(f"{group}={option}", group, options)
    return None


def _values(value: str) -> list[str]:
    """The single options in ``a``, in a sweep ``a,b`` and in a list ``[a,b]``."""
    parts = (part.strip().strip("'\"") for part in value.strip("[]").split(","))
    return [part for part in parts if part]


def _unchosen(setting: str, group: str, value: str, space: ConfigSpace) -> str:
    if setting.startswith("dataset.root="):
        return f"{setting}: nothing is chosen for dataset yet; write {_folder(value)}"
    return f"{setting}: nothing is chosen for {group} yet; add {group}= one of {', '.join(space.groups[group])}"


def _as_option(group: str, value: str, space: ConfigSpace) -> str | None:
    """``group=value``, or near ones, or what a folder means."""
    if value in space.groups[group]:
        return f"{group}={value}"
    if group == "dataset" and value:
        return _folder(value)
    known = _OPTIONS.get(group, {}).get(value.lower())
    found = [known] if known in space.groups[group] else near(value, space.groups[group])
    return " or ".join(f"{group}={option}" for option in found) or None


def _choices(setting: str, group: str, options: Sequence[str]) -> str:
    some = ", ".join(options) if len(options) <= 24 else f"{', '.join(options[:24])}, ..."
    return f"{setting}: there is no such option; {group}= takes {some}"


def _with_value(key: str, value: str, space: ConfigSpace) -> str:
    """The setting as it should be typed, with what else must be chosen for it."""
    if key in space.groups:
        return _as_option(key, value, space) or f"{key}=..."
    if key == "trainer.devices" and value != "1" and value.isdigit():
        return f"trainer=ddp {key}={value}"
    if key == "trainer.devices" and value == "1":
        return "trainer=gpu"
    return _folder(value) if key == "dataset.root" and "dataset" in space.unchosen else f"{key}={value}"


def _folder(path: str) -> str:
    return f"dataset=folder dataset.root={path}"


def _no_such_key(key: str, value: str, space: ConfigSpace) -> str:
    above = key.rpartition(".")[0]
    while above and above not in space.keys:
        above = above.rpartition(".")[0]
    beside = [
        name.rpartition(".")[2] for name in space.keys if name.rpartition(".")[0] == above and "._" not in f".{name}"
    ]
    if not above or not beside:
        return f"{key}={value}: there is no such setting; --cfg job shows all settings"
    return f"{key}={value}: {above} has no setting {key[len(above) + 1 :]}; it has {', '.join(beside)}"


def _did_you_mean(given: str, found: Sequence[str]) -> str | None:
    return f"{given}: did you mean {' or '.join(found)}?" if found else None
