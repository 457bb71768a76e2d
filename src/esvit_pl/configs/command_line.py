"""The decorator that makes every command from ``hydra.main``. Nothing slow is imported: --help and TAB wait for it.

    @command("knn", summary="Measure features.", examples=["esvit-knn ckpt_path=last.ckpt"], needs=what_is_missing)
    def main(cfg: DictConfig) -> float | None:
        from esvit_pl.configs import assemble  # torch, Lightning and timm are imported from here on
        ...

Exit codes: 0; 1 for a wrong setting, a wrong input or a failed job; 2 for a flag that does not exist or that excludes
another one; 130 for Ctrl-C.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs import near_match, run_folder, sweep
from esvit_pl.configs.instantiation import hydra_has_whitelist, import_plugins, trusted_patterns
from esvit_pl.configs.quoting import names_a_file, quote_paths, quoted
from esvit_pl.runs.folder import remove_empty

Task = Callable[[DictConfig], Any]


class UserError(CompactHydraException):
    """An error that the user can correct: shown as a paragraph, without a traceback; exit code 1."""


def command(
    config_name: str,
    *,
    summary: str,
    examples: Sequence[str] = (),
    needs: Callable[[DictConfig], str | None] | None = None,
    refuses: Callable[[Sequence[str]], str | None] | None = None,
    config_package: str = "esvit_pl.conf",
) -> Callable[[Task], Callable[[], None]]:
    """Turn ``task(cfg)`` into a console command.

    Args:
        config_name: primary config in ``config_package``; also the command's name: ``esvit-<config_name>``.
        summary: first line of ``--help``.
        examples: command lines, shown by ``--help`` and if something is missing.
        needs: called with the composed config before the task; returns a sentence that says what is missing, or None.
        refuses: called with the words of the command line before they are composed; returns a sentence, or None.
        config_package: importable package that holds the configs.

    Returns:
        A decorator. The decorated function takes no arguments and reads ``sys.argv``.
    """

    def decorate(task: Task) -> Callable[[], None]:
        started = False

        @functools.wraps(task)
        def job(cfg: DictConfig) -> Any:
            nonlocal started
            started = True
            _check_before(cfg, needs, examples)
            try:
                with run_folder.claim_of_job(cfg):
                    import_plugins()
                    return task(cfg)
            except Exception as error:
                if is_for_people(error):
                    raise UserError(_paragraph(error)) from (error if _wants_everything() else None)
                raise

        @functools.wraps(task)
        def main() -> None:
            nonlocal started
            started = False
            _register_help(config_name, summary, examples)
            sys.argv[1:] = quote_paths(_null_means_none(sys.argv[1:], config_package))
            _refuse_dashed_settings(sys.argv[1:])
            refusal = refuses(sys.argv[1:]) if refuses is not None else None
            if refusal is not None:
                print(f"\n{refusal}", file=sys.stderr)
                sys.exit(1)
            try:
                _hydra_main(config_package, config_name)(job)()
            except KeyboardInterrupt:
                print("\ninterrupted", file=sys.stderr)
                sys.exit(128 + signal.SIGINT)
            except ValueError as error:  # from Hydra, about flags that exclude one another
                if started or _wants_everything():
                    raise
                print(f"esvit-{config_name}: {error}", file=sys.stderr)
                sys.exit(2)
            except SystemExit as stop:
                if stop.code in (1, 2) and not started:
                    for line in hints(sys.argv[1:], config_package, config_name):
                        print(line, file=sys.stderr)
                raise
            finally:
                run_folder.release()
                sweep.close()

        return main

    return decorate


def words_as_setting(argv: Sequence[str], key: str) -> list[str]:
    """Join the words of a command line that are neither settings nor flags into one setting.

    ``logs/ more/`` becomes ``folders=['logs/','more/']``. A word after a flag belongs to the flag: ``--cfg job``.
    A word with ``=`` is a setting, unless it names something that exists: ``logs/lr=0.1``.
    """
    behind = {index + 1 for index, word in enumerate(argv) if word.startswith("-")}
    is_bare = [
        ("=" not in word or names_a_file(word)) and not word.startswith(("-", "~")) and index not in behind
        for index, word in enumerate(argv)
    ]
    words = [quoted(word) for word, yes in zip(argv, is_bare, strict=True) if yes]
    others = [word for word, yes in zip(argv, is_bare, strict=True) if not yes]
    return [*others, f"{key}=[{','.join(words)}]"] if words else others


def requires(program: str, *keys: str) -> Callable[[DictConfig], str | None]:
    """A ``needs`` for `command` that names those of the keys that are missing or null."""

    def needs(cfg: DictConfig) -> str | None:
        missing = [key for key in keys if OmegaConf.select(cfg, key) is None]
        return f"{program} needs {' and '.join(f'{key}=' for key in missing)}" if missing else None

    return needs


def is_for_people(error: BaseException) -> bool:
    """Whether the message of ``error`` is meant for the user: it is raised by this package, or a file cannot be read.

    A ValueError from inside another library keeps its traceback.
    """
    kind = type(error).__module__.partition(".")[0]
    if kind == "esvit_pl" or type(error).__name__ == "MisconfigurationException":
        return True
    if isinstance(error, FileNotFoundError | PermissionError):
        return True
    told = isinstance(error, ValueError | NotImplementedError)
    return told and (_raised_by_us(error) or _in_worker(error) is not None)


def _in_worker(error: BaseException) -> str | None:
    """The message of our ValueError in a loading process, which torch raises again with the traceback as its text."""
    text = str(error)
    ours = "/esvit_pl/" in text.replace("\\", "/").rpartition("  File ")[2]
    return text.rpartition("\nValueError: ")[2].strip() if "in DataLoader worker process" in text and ours else None


def _raised_by_us(error: BaseException) -> bool:
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == "esvit_pl"


def _paragraph(error: BaseException) -> str:
    name = "" if isinstance(error, ValueError | NotImplementedError) else f"{type(error).__name__}: "
    return f"\n{name}{_in_worker(error) or error}"


def _wants_everything() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _hydra_main(config_package: str, config_name: str) -> Callable[[Task], Callable[[], None]]:
    options: dict[str, Any] = {"config_path": f"pkg://{config_package}", "config_name": config_name, **version_base()}
    if hydra_has_whitelist():
        options["execution_whitelist"] = trusted_patterns()
    return hydra.main(**options)


def version_base() -> dict[str, str]:
    """Hydra 1.3 wants ``version_base``; 1.4 warns about it."""
    return {} if hydra_has_whitelist() else {"version_base": "1.3"}


# -- before the task


def _check_before(cfg: DictConfig, needs: Callable[[DictConfig], str | None] | None, examples: Sequence[str]) -> None:
    """Raise UserError if something is missing or a setting has no value, and remove the run folder then.

    Also for a job that cannot be part of a sweep; its folder stays, so that the sweep's table shows it.
    """
    problem = needs(cfg) if needs is not None else None
    if problem is None:
        missing = [key for key, value in _flatten(OmegaConf.to_container(cfg, resolve=False)) if value == "???"]
        if missing:
            problem = f"no value for {', '.join(missing)}: add {' '.join(f'{key}=...' for key in missing)}"
    if problem is not None:
        discard_run_folder()
        raise UserError("\n".join([f"\n{problem}", *_example_lines(examples), "\nAll settings: --help"]))
    refusal = sweep.job_refusal(cfg)
    if refusal is not None:
        raise UserError(f"\n{refusal}")


def discard_run_folder() -> None:
    """Remove the run folder if it only holds what Hydra has just written."""
    run_folder.release()
    if not HydraConfig.initialized():
        return
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    written = [folder / f"{config.job.name}.log"]
    if config.output_subdir is not None:
        notes = folder / config.output_subdir
        written += [notes / name for name in ("config.yaml", "hydra.yaml", "overrides.yaml")]
    if any(path.is_file() and path not in written for path in folder.rglob("*")):
        return
    with suppress(OSError):  # if the folder cannot be removed, the message is still shown
        for path in written:
            path.unlink(missing_ok=True)
        for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            inner.rmdir()
        remove_empty(folder)


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every node, branches included."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            key = f"{prefix}.{name}" if prefix else str(name)
            yield key, child
            yield from _flatten(child, key)


# -- help


def _register_help(config_name: str, summary: str, examples: Sequence[str]) -> None:
    """Give conf/hydra/default.yaml this command's words. ``$`` is doubled, since Hydra fills in a string.Template."""
    program = f"esvit-{config_name}"
    words = {"program": program, "help": "\n".join([f"{program}: {summary}", *_example_lines(examples)])}
    # Hydra 1.4 comes with an omegaconf that has renamed it.
    register: Any = OmegaConf.register_resolver if hydra_has_whitelist() else OmegaConf.register_new_resolver
    register("esvit_command", lambda key: words[key].replace("$", "$$"), replace=True)


def _example_lines(examples: Sequence[str]) -> list[str]:
    return ["", "For example:", *(f"  {line}" for line in examples)] if examples else []


# -- wrong words on the command line


def _null_means_none(argv: Sequence[str], config_package: str) -> list[str]:
    """Replace ``logger=null``, as templates for Lightning and Hydra write it, by the option ``logger=none``."""
    options = files(config_package)
    groups = [word.removesuffix("=null") if word.endswith("=null") else "" for word in argv]
    has_none = [bool(group) and options.joinpath(group, "none.yaml").is_file() for group in groups]
    return [f"{group}=none" if none else word for word, group, none in zip(argv, groups, has_none, strict=True)]


def _refuse_dashed_settings(argv: Sequence[str]) -> None:
    """Exit with 2 for ``--experiment=embedded``, which argparse would take for its ``--experimental-rerun``."""
    wrong = [near_match.explain_flag(word, _known_flags()) for word in argv if word.startswith("--") and "=" in word]
    for line in filter(None, wrong):
        print(line, file=sys.stderr)
    if any(wrong):
        sys.exit(2)


def hints(argv: Sequence[str], config_package: str, config_name: str) -> list[str]:
    """Suggestions for a command line that Hydra has refused."""
    flags, settings = _split(argv)
    lines = [near_match.explain_flag(flag, _known_flags()) for flag in flags]
    if settings:
        space = _config_space(settings, config_package, config_name)
        lines += [near_match.explain_setting(setting, space) for setting in settings]
    return [line for line in lines if line is not None]


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags, settings). The value of a flag such as ``--config-dir DIR`` is in neither, where it can be recognised."""
    flags = [word for word in argv if word.startswith("-")]
    values = {argv[i + 1] for i, word in enumerate(argv[:-1]) if word.startswith("-") and "=" not in argv[i + 1]}
    return flags, [word for word in argv if not word.startswith("-") and word not in values]


def _known_flags() -> list[str]:
    from hydra._internal.utils import get_args_parser

    return [flag for action in get_args_parser()._actions for flag in action.option_strings]


def _config_space(settings: Sequence[str], config_package: str, config_name: str) -> near_match.ConfigSpace:
    """Groups and keys, composed with those choices in ``settings`` that exist; no keys if even that fails."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_module(config_package, **version_base()):
        main = GlobalHydra.instance().hydra
        assert main is not None
        groups = {name: main.config_loader.get_group_options(name) for name in main.list_all_config_groups()}
        chosen = [
            setting
            for setting in settings
            if (name := setting.lstrip("+").partition("=")[0]) in groups and setting.partition("=")[2] in groups[name]
        ]
        for overrides in (chosen, []):
            with suppress(Exception):  # Hydra has already reported it
                tree = OmegaConf.to_container(hydra.compose(config_name, overrides), resolve=False)
                flat = dict(_flatten(tree))
                unchosen = [name for name in groups if flat.get(name) is None]
                return near_match.ConfigSpace(groups, list(flat), unchosen)
        return near_match.ConfigSpace(groups)
