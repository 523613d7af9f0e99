"""The notebook runs from its first cell to its last, and its figures are those that its words promise."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from optimised import OPTIMISED

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_and_registers_recover_the_accuracy_there(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", OPTIMISED)  # of the kernel, a process of its own
    notebook = nbformat.read(NOTEBOOK, 4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # it is kept without what it gave
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    texts = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    top1 = {name: float(value) for name, value in re.findall(r"^(.*?) +top-1 +([\d.]+)%", texts, re.MULTILINE)}
    assert top1["w8a8, static scales"] < top1["float"] - 10
    assert top1["w8a8, static, registers"] > top1["float"] - 3 and top1["w8a8, scales a token"] > top1["float"] - 3
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert len([each for each in pictures if "image/svg+xml" in each["data"]]) == 3
