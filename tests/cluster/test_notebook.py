# SPDX-License-Identifier: GPL-2.0-or-later
"""The notebooks run from their first cell to the last, and show what they promise."""

import os
from pathlib import Path

import pytest
from coremesh.cluster.machine.images.debian_image import DebianImage

pytest.importorskip("coremesh.core._native", reason="the engine is not built")
jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("matplotlib")
pytest.importorskip("ipykernel")

NOTEBOOKS = Path(__file__).parents[2] / "deploy" / "notebooks"

pytestmark = [pytest.mark.linux, pytest.mark.timeout(600)]


def test_first_scaling_boots_guests_and_plots_their_throughput(
    debian: DebianImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRST_SCALING_CORES", os.environ.get("FIRST_SCALING_CORES", "1 2 4 8"))
    monkeypatch.setenv("FIRST_SCALING_MEGABYTES", "2")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = jupytext.read(NOTEBOOKS / "first_scaling.py")
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    data = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
    tables = [item["text/html"] for item in data if "text/html" in item]
    assert any("Coremesh machine" in table for table in tables)
    assert any("throughput, of one core" in table for table in tables)
    assert any("image/png" in item for item in data)
