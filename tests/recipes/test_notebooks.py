"""Notebooks run from top to bottom as a newcomer would run them."""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_the_plots_are_drawn(path, monkeypatch):
    shown, names = [], {"__name__": "__main__"}
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf().canvas.draw()))
    cells = nbformat.read(path, as_version=4).cells
    for cell in cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, str(path), "exec"), names)
    plt.close("all")
    assert len(shown) >= 3
    assert not any(cell.get("outputs") for cell in cells), "commit it without outputs"


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_a_kernel_and_shows_its_plots(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(shown) >= 3
