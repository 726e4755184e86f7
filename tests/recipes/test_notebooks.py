"""Notebooks run from top to bottom as a newcomer would run them, and lie here with their figures, small and clean."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
CHEAP = [path for path in NOTEBOOKS if path.stem.startswith("00")]
LARGEST = 450_000  # bytes, figures included
MINUTES = 20  # of one notebook on a busy core; two to four on an idle one


def figures(notebook):
    return [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]


def ids(path):
    return path.stem


@pytest.mark.usefixtures("drawn_figures")
@pytest.mark.parametrize("path", CHEAP, ids=ids)
def test_every_cell_runs_and_the_plots_are_drawn(path, monkeypatch):
    shown, names = [], {"__name__": "__main__"}
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf().canvas.draw()))
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, str(path), "exec"), names)
    plt.close("all")
    assert len(shown) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_it_is_committed_with_its_figures_and_without_traces_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    assert figures(notebook), "run it and store its outputs"
    assert path.stat().st_size < LARGEST
    outputs = str([cell.get("outputs", []) for cell in notebook.cells])
    assert re.findall(r"/(?:tmp|home|root|work)/\w+|Traceback", outputs) == []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, str(path), "exec")


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_it_runs_in_a_kernel_and_shows_its_plots(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    stored = len(figures(notebook))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=60 * MINUTES, kernel_name="python3", resources=resources).execute()
    assert len(figures(notebook)) == stored
