# SPDX-License-Identifier: GPL-2.0-or-later
"""The notebooks run from their first cell to the last, and show what they promise."""

import os
from pathlib import Path
from typing import Any

import pytest
from coremesh.cluster.machine.images.debian_image import DebianImage

pytest.importorskip("coremesh.core._native", reason="the engine is not built")
jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("matplotlib")
pytest.importorskip("ipykernel")

NOTEBOOKS = Path(__file__).parents[2] / "deploy" / "notebooks"

pytestmark = [pytest.mark.linux, pytest.mark.timeout(600)]


def executed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[Any]:
    """What the cells of a notebook show when it runs in `folder`, from the first to the last."""
    for variable, value in {"MPLBACKEND": "module://matplotlib_inline.backend_inline", **variables}.items():
        monkeypatch.setenv(variable, value)
    notebook = jupytext.read(NOTEBOOKS / f"{name}.py")
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]


def pictures(shown: list[Any]) -> int:
    return sum("image/png" in item for item in shown)


def shows(shown: list[Any], text: str) -> bool:
    return any(text in str(item.get("text/html", "")) + str(item.get("text/plain", "")) for item in shown)


def test_first_scaling_boots_guests_and_plots_their_throughput(
    debian: DebianImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = os.environ.get("FIRST_SCALING_CORES", "1 2 4 8")
    shown = executed(
        "first_scaling", tmp_path, monkeypatch, FIRST_SCALING_CORES=cores, FIRST_SCALING_MEGABYTES="2"
    )
    assert shows(shown, "Coremesh machine")
    assert shows(shown, "throughput, of one core")
    assert pictures(shown)


def test_live_machine_is_looked_into_while_it_runs(
    debian: DebianImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = executed("live_machine", tmp_path, monkeypatch)
    assert shows(shown, "Coremesh machine")
    assert shows(shown, "20000")
    assert shows(shown, "console=ttyS0")


def test_python_device_is_used_by_the_guest_and_hooks_it(
    debian: DebianImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = executed("python_device", tmp_path, monkeypatch)
    assert shows(shown, "21500")
    assert shows(shown, "(99000, 80000)")
    assert shows(shown, "<th>c</th>"), "the marks that the guest gave"
    assert shows(shown, "Thermometer")


@pytest.mark.slow
def test_lock_collapse_sweeps_locks_over_cores(
    debian: DebianImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = executed(
        "lock_collapse", tmp_path, monkeypatch, LOCK_COLLAPSE_CORES="1 2 4",
        LOCK_COLLAPSE_KINDS="tas mcs", LOCK_COLLAPSE_MILLISECONDS="300",
    )  # fmt: skip
    assert shows(shown, "6 of 6 trials done"), "the progress of the sweep"
    assert shows(shown, "acquisitions_per_second")
    assert pictures(shown) == 1


@pytest.mark.slow
def test_false_sharing_compares_policies_over_two_hosts(
    debian: DebianImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = executed(
        "false_sharing", tmp_path, monkeypatch, FALSE_SHARING_PATTERNS="private false",
        FALSE_SHARING_POLICIES="never adaptive", FALSE_SHARING_MILLISECONDS="300",
    )  # fmt: skip
    assert shows(shown, "4 of 4 trials done")
    assert shows(shown, "adaptive")
    assert shows(shown, "symbols")
    assert pictures(shown) == 1


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [False, True])
def test_sweep_on_cluster_loses_no_row_to_trials_that_fail_and_die(
    debian: DebianImage, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: bool
) -> None:
    where = {"COREMESH_ADDRESS": address} if cluster else {}
    shown = executed("sweep_on_cluster", tmp_path, monkeypatch, **where)
    assert shows(shown, "the first try always fails")
    assert shows(shown, "TrialLostError")
    assert shows(shown, "1 of 3 trials done") or shows(shown, "3 of 3 trials done")
    assert pictures(shown) == 1
    assert (tmp_path / "survivors.html").stat().st_size > 10_000
