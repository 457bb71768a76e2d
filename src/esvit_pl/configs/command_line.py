"""The decorator that makes every command from ``hydra.main``. Nothing slow is imported: --help and TAB wait for it.

    @command("knn", summary="Measure features.", examples=["esvit-knn ckpt_path=last.ckpt"], needs=what_is_missing)
    def main(cfg: DictConfig) -> float | None:
        from esvit_pl.configs import assemble  # torch, Lightning and timm are imported from here on
        ...

What a user can correct is one sentence on stderr, without Hydra's frame and without a traceback. Exit codes: 0; 1 for a
wrong setting or flag, a wrong input or a failed job; 130 for Ctrl-C. HYDRA_FULL_ERROR=1 in the environment shows every
traceback.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TextIO

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs import checks, near_match, pasted, refusals, requeue, run_folder, sweep
from esvit_pl.configs.checked_loader import checked_loader
from esvit_pl.configs.config_space import CONFIGS, config_space, flat_keys, version_base
from esvit_pl.configs.hydra_nodes import Refused
from esvit_pl.configs.instantiation import hydra_has_whitelist, import_plugins, trusted_patterns
from esvit_pl.configs.processes import is_first_process
from esvit_pl.configs.quoting import quote_paths
from esvit_pl.printing import say, warnings_as_lines
from esvit_pl.runs.claim import claimed, files_before_the_first_step
from esvit_pl.runs.folder import remove_empty
from esvit_pl.signals import end_in_order

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
    bare_words: str | None = None,
    config_package: str = CONFIGS,
) -> Callable[[Task], Callable[[], None]]:
    """Turn ``task(cfg)`` into a console command.

    Args:
        config_name: primary config in ``config_package``; also the command's name: ``esvit-<config_name>``.
        summary: first line of ``--help``.
        examples: command lines, shown by ``--help`` and if something is missing.
        needs: called with the composed config before the task; returns a sentence that says what is missing, or None.
        refuses: called with the words of the command line before they are composed; returns a sentence, or None.
        bare_words: the setting that words without ``=`` are values of: ``esvit-table logs/ more/``.
        config_package: importable package that holds the configs.

    Returns:
        A decorator. The decorated function takes no arguments and reads ``sys.argv``.
    """

    def decorate(task: Task) -> Callable[[], None]:
        started = goes_back = False

        @functools.wraps(task)
        def job(cfg: DictConfig) -> Any:
            nonlocal started, goes_back
            started, goes_back = True, requeue.is_wanted(cfg)
            with _stderr_again(), warnings_as_lines():
                try:
                    _check_before(cfg, needs, examples, config_package, config_name)
                    with run_folder.claim_of_job(cfg):
                        import_plugins()
                        return task(cfg)
                except Exception as error:
                    if is_for_people(error) and isinstance(error, ValueError) and not _is_swept():
                        discard_run_folder()
                    if is_for_people(error) and not isinstance(error, UserError):
                        raise UserError(in_words(error, cfg)) from (error if _wants_everything() else None)
                    raise

        @functools.wraps(task)
        def main() -> None:
            nonlocal started, goes_back
            started = goes_back = False
            _register_help(config_name, summary, examples)
            sys.argv[1:] = argv = _prepared(sys.argv[1:], bare_words, config_package, config_name)
            refusal = refuses(argv) if refuses is not None else None
            if refusal is not None:
                _stop(refusal, 1)
            for line in pasted.given_twice(pasted.settings_in(argv)):
                say(f"note: {line}", to=sys.stderr)
            try:
                with end_in_order(), checked_loader(), _stderr_held_back() as held:
                    try:
                        _hydra_main(config_package, config_name)(job)()
                    except SystemExit as stop:  # Hydra has shown the error already, in its own words
                        told = _told(stop, held.getvalue(), started, config_package, config_name)
                        if told is not None:
                            held.forget()
                            say(told, to=held.real)
                        if stop.code == 2 and not started:
                            sys.exit(1)  # argparse has a code of its own
                        raise
            except SystemExit as stop:
                if isinstance(stop.code, int) and stop.code > 128:
                    say(f"\nended by {signal.Signals(stop.code - 128).name}", to=sys.stderr)
                if goes_back and stop.code == 128 + signal.SIGUSR1:
                    run_folder.release()  # the job may start on another machine, which cannot see who holds it
                    requeue.requeue()
                raise
            except KeyboardInterrupt:
                say("\ninterrupted", to=sys.stderr)
                sys.exit(128 + signal.SIGINT)
            except ValueError as error:  # from Hydra, about flags that exclude one another
                if started or _wants_everything():
                    raise
                _stop(f"esvit-{config_name}: {error}", 1)
            finally:
                run_folder.release()
                sweep.close()

        return main

    return decorate


def requires(program: str, *keys: str) -> Callable[[DictConfig], str | None]:
    """A ``needs`` for `command` that names those of the keys that are missing or null."""

    def needs(cfg: DictConfig) -> str | None:
        missing = [key for key in keys if OmegaConf.select(cfg, key) is None]
        return f"{program} needs {' and '.join(f'{key}=' for key in missing)}" if missing else None

    return needs


def is_for_people(error: BaseException) -> bool:
    """Whether the message of ``error`` is meant for the user: it is raised by this package, or a file is refused.

    A ValueError from inside another library keeps its traceback.
    """
    kind = type(error).__module__.partition(".")[0]
    if kind == "esvit_pl" or type(error).__name__ == "MisconfigurationException":
        return True
    if isinstance(error, FileNotFoundError | PermissionError):
        return True
    if refusals.is_of_system(error) or refusals.is_missing_key(error) or refusals.is_of_memory(error):
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


def in_words(error: BaseException, cfg: DictConfig) -> str:
    """The message of an error that `is_for_people`."""
    if refusals.is_of_memory(error):
        return refusals.of_memory(error, cfg)
    if refusals.is_of_system(error) and isinstance(error, OSError):
        return refusals.of_system(error)
    if refusals.is_missing_key(error):
        return refusals.of_config(error) or str(error)
    plain = isinstance(error, ValueError | NotImplementedError) or type(error).__name__ == "MisconfigurationException"
    name = "" if plain else f"{type(error).__name__}: "
    return f"{name}{_in_worker(error) or error}"


def _wants_everything() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _hydra_main(config_package: str, config_name: str) -> Callable[[Task], Callable[[], None]]:
    options: dict[str, Any] = {"config_path": f"pkg://{config_package}", "config_name": config_name, **version_base()}
    if hydra_has_whitelist():
        options["execution_whitelist"] = trusted_patterns()
    return hydra.main(**options)


# -- stderr, which Hydra writes to before this file can


class _Held(io.StringIO):
    """Keeps what is written, unless it passes it on to the stream in whose place it stands."""

    def __init__(self, real: TextIO) -> None:
        super().__init__()
        self.real, self.passes = real, False

    def write(self, text: str) -> int:
        return self.real.write(text) if self.passes else super().write(text)

    def forget(self) -> None:
        self.seek(0)
        self.truncate()

    def show(self) -> None:
        self.real.write(self.getvalue())
        self.forget()


@contextmanager
def _stderr_held_back() -> Iterator[_Held]:
    """Hold back what Hydra says, so that it can be said in other words; what nobody has taken is shown at the end."""
    held = _Held(sys.stderr)
    sys.stderr = held
    try:
        yield held
    finally:
        sys.stderr = held.real
        held.passes = True  # a log handler may still hold on to it
        held.show()


@contextmanager
def _stderr_again() -> Iterator[None]:
    """The real stderr while a job runs; a job in a process of its own has it anyway."""
    held = sys.stderr
    if not isinstance(held, _Held):
        yield
        return
    held.show()
    sys.stderr, held.passes = held.real, True
    try:
        yield
    finally:
        sys.stderr, held.passes = held, False


def _told(stop: SystemExit, held: str, started: bool, package: str, name: str) -> str | None:
    """What Hydra has refused, in other words; None for an error that nobody should read without its traceback."""
    error = None if stop.__suppress_context__ else stop.__context__
    if isinstance(error, UserError | Refused):
        return str(error)
    if stop.code == 2 and not started:  # argparse
        return f"esvit-{name}: {held.rpartition('error: ')[2].strip()}; --help lists the flags"
    return None if started or error is None else refusals.explain(error, sys.argv[1:], package, name)


def _stop(sentence: str, code: int) -> NoReturn:
    say(sentence, to=sys.stderr)
    sys.exit(code)


# -- before the task


def _check_before(
    cfg: DictConfig,
    needs: Callable[[DictConfig], str | None] | None,
    examples: Sequence[str],
    package: str,
    config_name: str,
) -> None:
    """Raise UserError if something is missing or a setting has no value or a wrong one; the run folder is removed then.

    Also for a job that cannot be part of a sweep; its folder stays, so that the sweep's table shows it.
    """
    known = HydraConfig.get().job.config_name == config_name
    choices = HydraConfig.get().runtime.choices if known else {}
    problem: str | None
    if missing := [key for key, value in flat_keys(cfg) if value == "???"]:
        problem = f"no value for {', '.join(missing)}; give {' '.join(f'{key}=...' for key in missing)}"
    else:
        problem = checks.problem(cfg, package=package, config_name=config_name, choices=choices)
    if problem is None and needs is not None and (lacking := needs(cfg)) is not None:
        problem = "\n".join([lacking, *_example_lines(examples), "\nAll settings: --help"])
    if problem is not None:
        discard_run_folder()
        raise UserError(problem)
    refusal = sweep.job_refusal(cfg)
    if refusal is not None:
        raise UserError(refusal)


def _is_swept() -> bool:
    """Whether this is a job of a sweep, whose table shows what failed."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def discard_run_folder() -> None:
    """Remove the files of a run that has not come to its first step, and the folder if nothing else is in it.

    In a folder that the command does not hold, these are Hydra's notes alone.
    """
    if not HydraConfig.initialized() or not is_first_process():
        return
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    files = files_before_the_first_step(folder, f"{config.job.name}.log", notes=claimed(folder) is None)
    run_folder.release()
    with suppress(OSError):  # if the folder cannot be removed, the message is still shown
        for path in files:
            path.unlink(missing_ok=True)
        for inner in {path.parent for path in files} - {folder}:
            remove_empty(inner)
        remove_empty(folder)


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


# -- words of the command line


def _prepared(argv: Sequence[str], bare_words: str | None, package: str, config_name: str) -> list[str]:
    """The words as Hydra reads them; what is spoilt or begins with wrong dashes ends the process here."""
    spoilt = pasted.explain(argv)
    if spoilt is not None:
        _stop(spoilt, 1)
    wrong = _wrong_flags(argv, package, config_name)
    if wrong:
        _stop("\n".join(wrong), 1)
    rerun = [word for word in argv if len(word) > 3 and "--experimental-rerun".startswith(word.partition("=")[0])]
    if rerun:  # in full or in part, as argparse takes it
        _stop(f"{rerun[0]}: reads a pickle, which runs the code in it; --help says how to run a past run again", 1)
    if "--version" in argv:
        say(f"esvit_pl {version('esvit_pl')}, Hydra {version('hydra-core')}")
        sys.exit(0)
    words = pasted.bare_words_as_setting(argv, bare_words) if bare_words is not None else argv
    return quote_paths(pasted.null_means_none(pasted.flags_first(words), package))


def _wrong_flags(argv: Sequence[str], package: str, config_name: str) -> list[str]:
    """``--epochs 3``, ``-lr 0.1`` and ``--experiment=embedded``, which argparse would take for its own flag."""
    from hydra._internal.utils import get_args_parser

    flags = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    names = [word.partition("=")[0] if word.startswith("-") else "" for word in argv]
    wrong = [i for i, name in enumerate(names) if len(name) > 2 and name not in flags]
    if not wrong:
        return []
    space = config_space([word for word in argv if not word.startswith("-")], package, config_name)
    nexts = [
        next((word for word in argv[i + 1 : i + 2] if not word.startswith("-") and "=" not in word), "") for i in wrong
    ]
    lines = (near_match.explain_flag(argv[i], flags, after, space) for i, after in zip(wrong, nexts, strict=True))
    return [line for line in lines if line is not None]
