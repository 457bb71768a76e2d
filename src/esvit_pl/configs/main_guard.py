"""Scripts that start processes which import them again: where those are spawned, the script needs a guard.

Loading processes are spawned on macOS and Windows, and come from a fork server on Linux with Python 3.14. Such a
process imports the script that started it. A call of ``pretrain`` that stands bare in the script would begin a second
training there.
"""

from __future__ import annotations

import ast
import multiprocessing
import pickle
import sys
from pathlib import Path

IN_THE_PROCESS = "load images in the process itself: datamodule={'num_workers': 0}"
GUARD = 'if __name__ == "__main__":'


def check_not_in_a_copy(call: str) -> None:
    """Refuse `call` in a process that is about to import the script as ``multiprocessing`` does.

    Raises:
        ValueError: this is such a process.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ValueError(_advice(call, "a process that it started has called it again while importing the script"))


def check_guard(call: str, images: object = None) -> None:
    """Refuse `call` from a line of a script that processes started by it would run again, or with data that cannot
    be sent to them.

    Raises:
        ValueError: processes are not forked here, and the running line of the script stands under no guard, or
            `images` cannot be pickled.
    """
    started = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if started == "fork":
        return
    if not _is_guarded():
        raise ValueError(_advice(call, f"processes that load images are started by '{started}' and import the script"))
    try:
        pickle.Pickler(_Nowhere()).dump(images)
    except Exception as error:  # whatever the data raise
        raise ValueError(
            f"the data cannot be sent to the processes that load images, which are started by '{started}' ({error}). "
            f"Define its class at the top of a module, without lambdas and open files, or {IN_THE_PROCESS}"
        ) from error


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


def _is_guarded() -> bool:
    """Whether the script's line that is running stands below a question for ``__name__``; true without a script."""
    main = sys.modules["__main__"]
    file, frame, line = getattr(main, "__file__", None), sys._getframe(), None
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals is vars(main) and frame.f_code.co_name == "<module>":
            line = frame.f_lineno
    if file is None or line is None:
        return True
    try:
        statements = ast.parse(Path(file).read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, UnicodeDecodeError):  # a notebook, or an archive
        return True
    running = next((each for each in statements if each.lineno <= line <= (each.end_lineno or 0)), None)
    asked = ast.walk(running.test) if isinstance(running, ast.If) else ()
    return running is None or any(isinstance(node, ast.Name) and node.id == "__name__" for node in asked)


def _advice(call: str, why: str) -> str:
    return (
        f"esvit_pl.{call} stands bare in a script, and {why}. Put it under a guard:\n\n    {GUARD}\n        "
        f"esvit_pl.{call}(...)\n\nor {IN_THE_PROCESS}"
    )
