"""Errors of Hydra, OmegaConf, YAML and the operating system, as sentences that say what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError
from yaml.error import MarkedYAMLError

from esvit_pl.configs import near_match, pasted
from esvit_pl.configs.config_space import config_space

_NO_CONFIG = re.compile(r"Cannot find primary config '([^']*)'|Primary config \w+ '([^']*)' not found")
_HAVE_NONE = ("callbacks", "logger")  # groups with an option `none`
_ELSEWHERE = "write somewhere else with out=FOLDER, or for all runs with ESVIT_LOG_DIR=FOLDER in the environment"


def explain(error: BaseException, argv: Sequence[str], package: str, config_name: str) -> str | None:
    """What is wrong with a command line that Hydra has refused with `error`; None if nothing is known about it."""
    if _NO_CONFIG.match(str(error)):
        return of_config(error)
    settings = pasted.settings_in(argv)
    lines = hints(
        settings,
        package,
        _value_of(argv, "--config-name", "-cn") or config_name,
        _value_of(argv, "--config-dir", "-cd"),
    )
    return "\n".join(lines) if lines else of_config(error) or (of_system(error) if isinstance(error, OSError) else None)


def hints(settings: Sequence[str], package: str, config_name: str, config_dir: str | None = None) -> list[str]:
    """Suggestions for settings of a command line."""
    if not settings:
        return []
    if config_dir is not None and not os.path.isdir(config_dir):
        return []
    space = config_space(settings, package, config_name, config_dir)
    return [line for setting in settings if (line := near_match.explain_setting(setting, space)) is not None]


def of_config(error: BaseException) -> str | None:
    """An error of Hydra, OmegaConf or YAML in plain words; None for any other."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, YAMLError):
            return _of_yaml(cause)
        if isinstance(cause, InterpolationResolutionError):
            return _of_interpolation(cause)
        cause = cause.__cause__
    text = str(error).strip()
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        return (
            f"{error.override} cannot be read: a bracket or a quote is not closed, or a special sign is in the value; "
            f"lists are {key}=[1,2], and text with special signs stands in two kinds of quotes: "
            f"""\"{key}='{value.strip("'")}'\""""
        )
    if match := re.match(r"Sweep parameters '(.*)' requires --multirun", text):
        return f"{match[1]}: several values are a sweep, which wants -m before them"
    if match := re.match(r"(?:Missing key|Key) \S+(?s:.*)full_key: (\S+)", text) if is_missing_key(error) else None:
        none = f" {match[1]}=none is how to have none" if match[1] in _HAVE_NONE else ""
        return f"the config has no {match[1]}, which the command reads; was it taken away with ~{match[1]}?{none}"
    if match := re.match(r"Could not delete from config. '(.*)' does not exist", text):
        return f"~{match[1]}: there is nothing to take away; {match[1]} is null, or not there at all"
    if match := re.match(r"Ambiguous value for argument '(.*)'", text):
        return _of_several_values(match[1])
    if match := re.search(r"Could not find '([^']*)/([^'/]*)'\s+Available options in '[^']*':\s+((?:\t\S+\s*)*)", text):
        group, option, options = match[1], match[2], match[3].split()
        where = re.match(r"In '([^']*)'", text)
        close = [f"{group}: {name}" for name in near_match.near(option, options)]
        return f"{where[1] if where else 'a config'} names {group}: {option}, and there is no such option; " + (
            f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(options)}"
        )
    if match := _NO_CONFIG.match(text):
        if match[2]:
            return f"--config-path: there is no {match[2]}; for a folder of your own, write --config-dir DIR"
        return f"--config-name {match[1]}: there is no such config; name a file of --config-dir without its .yaml"
    if match := re.match(r"Additional config directory '([^']*)' not found", text):
        return f"--config-dir {match[1]}: there is no such folder"
    if isinstance(error, HydraException | OmegaConfBaseException):
        lines = [
            line.strip() for line in text.splitlines() if "hydra.cc/docs" not in line and "object_type=" not in line
        ]
        return " ".join(filter(None, lines))
    return None


def is_missing_key(error: BaseException) -> bool:
    """Whether a setting was read that the config does not have."""
    return isinstance(error, ConfigAttributeError | ConfigKeyError)


def _of_several_values(word: str) -> str:
    key, _, value = word.partition("=")
    parts = value.split(",")
    as_one = f"one text \"{key}='{value}'\""
    if len(parts) == 2 and all(part.isdigit() for part in parts):
        as_one = f"a number with decimals {key}={'.'.join(parts)}"
    return f"{word}: several values are a sweep, which wants -m before them; a list is {key}=[{value}], {as_one}"


def _of_interpolation(error: BaseException) -> str:
    text = str(error)
    key = getattr(error, "full_key", None) or "a setting"
    if match := re.search(r"Environment variable '([^']*)' not found", text):
        name = match[1]
        return f"{key} reads the environment variable {name}, which is not set; export {name}=..., or give {key}=..."
    if match := re.search(r"Interpolation key '([^']*)' not found", text):
        return f"{key} refers to ${{{match[1]}}}, and there is no such setting; --cfg job shows all settings"
    return f"{key} cannot be worked out: {text.splitlines()[0]}"


def _of_yaml(error: YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if not isinstance(error, MarkedYAMLError) or mark is None:
        return f"a config file is no YAML: {str(error).splitlines()[0]}"
    what = error.problem or "it cannot be read"
    tab = "; YAML takes spaces, no tabs" if "\\t" in what else ""
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: this is no YAML: {what}{tab}"


_READING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_MEANT = (
    *_READING,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.EMFILE,
    errno.EEXIST,
)


def is_of_system(error: BaseException) -> bool:
    """Whether the operating system has refused a file for a reason that the user can do something about."""
    return isinstance(error, OSError) and error.errno in _MEANT and not isinstance(error, HydraException)


def of_system(error: OSError) -> str:
    """What happened to which file, and what helps.

    >>> of_system(OSError(errno.ENOSPC, "No space left on device", "runs/last.ckpt"))[:40]
    'runs/last.ckpt: the disk is full; free s'
    """
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else None
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            full = "the disk is full" if error.errno == errno.ENOSPC else "your share of the disk is used up"
            return _about(name, f"{full}; free some of it, or {_ELSEWHERE}")
        case errno.EFBIG:
            return _about(
                name,
                "the file would be larger than this process may write (ulimit -f); raise that limit",
            )
        case errno.EROFS:
            return _about(name, f"the file system is read-only; {_ELSEWHERE}")
        case errno.EACCES | errno.EPERM:
            return _about(
                name, f"no permission; allow it (ls -ld shows whose it is), or, if it is an output, {_ELSEWHERE}"
            )
        case errno.ENAMETOOLONG:
            longest = max((name or "").split("/"), key=len)
            shown = f"'{longest[:40]}...' of {len(os.fsencode(longest))} bytes" if longest else "a name"
            return f"{shown} is too long for a file name (255 bytes at most); give a shorter one"
        case errno.ENOENT:
            close = near_match.near_paths(name) if name else []
            return _about(
                name, "there is no such file or folder" + (f"; did you mean {' or '.join(close)}?" if close else "")
            )
        case errno.ENOTDIR:
            return _about(name, "a part of this path is a file where a folder is wanted")
        case errno.EEXIST:
            return _about(name, "a file of this name is in the way; move it elsewhere")
        case errno.EISDIR:
            return _about(name, "this is a folder, and a file is wanted")
        case errno.EMFILE:
            return _about(
                name, "too many files are open; raise the limit (ulimit -n 65535), or lower datamodule.num_workers"
            )
    return _about(name, error.strerror or str(error))


_NO_MEMORY = re.compile(r"out of memory|(can't|cannot|unable to) allocate|not enough memory", re.IGNORECASE)
_FEWER_PROCESSES = "fewer loading processes (datamodule.num_workers)"
# Setting -> what to write for it; not where it is 0, true or that already.
_LESS_MEMORY = {
    "module.grad_checkpointing": "module.grad_checkpointing=true",
    "trainer.precision": "trainer.precision=bf16-mixed",
    "augment.num_local": "fewer or smaller views (augment.num_local, augment.global_size)",
    "datamodule.eval_batch_size": "where it was measuring, a smaller datamodule.eval_batch_size",
    "datamodule.num_workers": _FEWER_PROCESSES,
}


def is_of_memory(error: BaseException) -> bool:
    """Whether memory has run out: a GPU's, or the machine's, here or in a loading process."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error).partition("\n")[0]) is not None


def of_memory(error: BaseException, cfg: DictConfig) -> str:
    """Which memory is full, and settings that need less than those of this config.

    >>> cfg = OmegaConf.create({"datamodule": {"batch_size": 64}, "trainer": {"accumulate_grad_batches": 1}})
    >>> of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), cfg)[:63]
    "the GPU's memory is full (Tried to allocate 2.00 GiB); what hel"
    """
    text = str(error)
    tried = re.search(r"tried to allocate [\d.,]+ ?\w+", text, re.IGNORECASE)
    said = tried[0] if tried else (text.strip().splitlines() or ["no more can be had"])[-1][:120]
    batch, parts = (OmegaConf.select(cfg, key) for key in ("datamodule.batch_size", "trainer.accumulate_grad_batches"))
    helps = []
    if isinstance(batch, int) and batch > 1:
        same = (
            f"datamodule.batch_size={batch // 2} trainer.accumulate_grad_batches={2 * (parts or 1)} for the same step"
        )
        helps.append(f"a smaller datamodule.batch_size than {batch}" if batch % 2 or parts is None else same)
    gpu = "CUDA" in text
    helps += [
        less
        for key, less in _LESS_MEMORY.items()
        if str(OmegaConf.select(cfg, key, default="0")) not in ("0", "True", "bf16-mixed")
        and not (gpu and less == _FEWER_PROCESSES)
    ]
    plan = "; dry_run=true says which batch fits" if "dry_run" in cfg else ""
    whose = "the GPU's memory" if gpu else "memory"
    return f"{whose} is full ({said}); what helps: {', '.join(helps)}{plan}"


def _about(name: str | None, sentence: str) -> str:
    return f"{name}: {sentence}" if name else sentence


def _value_of(argv: Sequence[str], *flags: str) -> str | None:
    for index, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag in flags:
            return value if equals else next(iter(argv[index + 1 : index + 2]), None)
    return None
