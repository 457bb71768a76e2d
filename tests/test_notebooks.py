"""The notebooks are the scripts beside them, and run: one short script in `make test`, all whole in `make test-all`."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")
pytest.importorskip("nbclient")

FOLDER = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
_spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
assert _spec is not None
assert _spec.loader is not None
execute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute)


def name(script: Path) -> str:
    return script.stem


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_script_and_notebook_are_the_same_cells(script):
    made, kept = execute.cells(script), nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [
        (cell.cell_type, cell.source) for cell in made.cells
    ], f"{script.stem}: edit the script, then `make notebooks`"
    nbformat.validate(kept)


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_it_ends_with_what_next_and_its_links_lead_somewhere(script):
    texts = [cell.source for cell in execute.cells(script).cells if cell.cell_type == "markdown"]
    last = execute.cells(script).cells[-1].source
    assert last.startswith("## What next\n")
    assert relative_links(last)
    lost = [link for text in texts for link in relative_links(text) if not (FOLDER / link).is_file()]
    assert not lost, f"{script.stem}: links that lead nowhere"


def relative_links(text: str) -> list[str]:
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link.partition("#")[0] for link in links if not link.startswith(("http", "#"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_the_notebook_that_is_kept_was_run_without_an_error(script):
    kept = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) or "<img" in str(output.get("data", "")) for output in outputs)
    assert script.with_suffix(".ipynb").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    "script", [SCRIPTS[0], *(pytest.param(path, marks=pytest.mark.slow) for path in SCRIPTS[1:])], ids=name
)
def test_the_script_runs_at_the_size_of_a_test(script, tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"ESVIT_SHORT": "1", "ESVIT_LOG_DIR": str(tmp_path), "MPLBACKEND": "Agg", "PATH": path}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_the_whole_notebook_runs(script, tmp_path, monkeypatch):
    monkeypatch.setenv("ESVIT_LOG_DIR", str(tmp_path))
    monkeypatch.delenv("ESVIT_SHORT", raising=False)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = execute.executed(script, cwd=tmp_path)
    assert all(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
