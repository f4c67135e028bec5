"""The notebooks of the documentation run from top to bottom, on drawn data and without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
PRINTED = {
    "own_parts": [
        r"image AUROC, frozen: [\d.]+",
        r"new +(good|bad) +p = 0\.\d+",
        r"scratch_head +(bad|good) +p = ",
        r"True",
    ],
    "new_density": [r"variances +pixel AUROC 0\.\d+", r"union +pixel AUROC 0\.\d+"],
    "papers": [r"2020, frozen +image AUROC [\d.]+", r"2021, fine-tuned +image AUROC [\d.]+", r"chosen: epoch \d"],
}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return content


@each
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
@each
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    print(text)  # `make notebooks` shows it
    for pattern in PRINTED[path.stem]:
        assert re.search(rf"^{pattern}", text, re.MULTILINE), pattern
    assert "UserWarning" not in str(outputs) and "━" not in str(outputs)  # progress bars are for terminals


def test_there_are_three_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == PRINTED.keys()
