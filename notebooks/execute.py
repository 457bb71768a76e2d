"""Makes the notebooks of the scripts beside it: ``make notebooks``.

The scripts (percent format) are what people edit and review; the notebooks are the same cells with their outputs.
``ESVIT_SHORT=1`` runs them at the size of a test.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def scripts() -> list[Path]:
    return sorted(FOLDER.glob("[0-9]*.py"))


def cells(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script, without outputs; always the same."""
    notebook = jupytext.read(script, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "jupytext": {"formats": "ipynb,py:percent"},
    }
    return notebook


def executed(script: Path, cwd: Path | None = None, timeout: int = 1800) -> nbformat.NotebookNode:
    """The notebook of a script with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails; says which.
    """
    notebook = cells(script)
    # The commands of this interpreter, whether or not its environment is activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(cwd or FOLDER)}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
    return notebook


def main() -> None:
    for script in scripts():
        print(script.name, flush=True)
        nbformat.write(executed(script), script.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
