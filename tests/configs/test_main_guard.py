"""Scripts that spawned processes would run again, told from those that stand under a guard."""

from __future__ import annotations

import subprocess
import sys

import pytest

from esvit_pl.configs.main_guard import check_guard

CALL = "check_guard('pretrain')"


@pytest.mark.parametrize(
    ("script", "refused"),
    [
        (CALL, True),
        (f"for _ in range(1):\n    {CALL}", True),
        (f"def main():\n    {CALL}\nmain()", True),
        (f"if __name__ == '__main__':\n    {CALL}", False),
        (f"def main():\n    {CALL}\nif '__main__' == __name__:\n    main()", False),
        (f"if len('a') == 1:\n    {CALL}", True),
    ],
)
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_the_running_line_of_the_script_decides(tmp_path, script, refused, method):
    file = tmp_path / "script.py"
    start = "import multiprocessing\nfrom esvit_pl.configs.main_guard import check_guard\n"
    file.write_text(f"{start}multiprocessing.set_start_method('{method}', force=True)\n{script}\nprint('fine')\n")
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True)
    if refused and method == "spawn":
        assert "ValueError: esvit_pl.pretrain stands bare in a script" in done.stderr
        assert 'if __name__ == "__main__":' in done.stderr
    else:
        assert done.stdout == "fine\n", done.stderr


def test_a_console_has_no_script_to_import():
    code = f"import multiprocessing; from esvit_pl.configs.main_guard import check_guard; {CALL}; print('fine')"
    code = code.replace("; ", "; multiprocessing.set_start_method('spawn'); ", 1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


def test_data_that_cannot_be_sent_to_spawned_processes_are_refused(monkeypatch):
    local = lambda index: index  # noqa: E731
    check_guard("pretrain", local)  # forked processes have it already
    monkeypatch.setattr("multiprocessing.get_start_method", lambda allow_none: "spawn")
    check_guard("pretrain", [1])
    with pytest.raises(
        ValueError, match=r"cannot be sent to .* started by 'spawn' \(.*lambda.*\)\. Define its class at"
    ):
        check_guard("pretrain", local)
