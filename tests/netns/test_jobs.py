# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person types on a cluster of two nodes: a job submitted, a machine booted, a sweep run."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")
pytest.importorskip("aiohttp_cors", reason="jobs need the extra 'cluster'")

from ray_nodes import RayNodes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.linux,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("debian"),
]

SWEEP = """
out = "{out}"
[trial]
command = "echo cores=$(nproc); echo twice=$(($number * 2))"
[parameters]
hosts = [1, 2]
number = [20, 21]
[machine]
vcpus = 2
memory = "256M"
append = "quiet"
"""


def typed(cluster: RayNodes, host: int, folder: Path, *words: str) -> str:
    """What a command printed that a person on `host` has typed."""
    done = subprocess.run(
        cluster.network.command(host, *words),
        env=cluster.environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open() as lines:
        return list(csv.DictReader(lines))


def require_result(rows: list[dict[str, str]], cluster: RayNodes) -> None:
    assert [(row["hosts"], row["number"]) for row in rows] == [
        ("1", "20"), ("1", "21"), ("2", "20"), ("2", "21"),
    ]  # fmt: skip
    assert [row["error"] for row in rows] == [""] * 4
    assert [float(row["twice"]) for row in rows] == [40, 42, 40, 42]
    assert {float(row["cores"]) for row in rows} == {2}
    both = {cluster.network.address(0), cluster.network.address(1)}
    for row in rows[2:]:
        assert set(row["nodes"].split(", ")) == both, "a machine of two hosts is on both nodes"


def test_given_a_cluster_of_two_nodes_when_a_sweep_is_submitted_as_a_job_then_its_result_can_be_read(
    cluster: RayNodes, tmp_path: Path
) -> None:
    """From the other node, as from a laptop: only the head's port for jobs is named."""
    out = tmp_path / "out.csv"
    work = tmp_path / "work"
    work.mkdir()
    (work / "sweep.toml").write_text(SWEEP.format(out=out))
    submit = ("ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", str(work))
    said = typed(cluster, 1, work, *submit, "--", "coremesh", "sweep", "sweep.toml", "--address", "auto")
    assert "succeeded" in said, said
    require_result(rows_of(out), cluster)
    listed = typed(cluster, 1, work, "ray", "job", "list", "--address", cluster.dashboard)
    assert "SUCCEEDED" in listed and "coremesh sweep sweep.toml" in listed


def test_given_a_job_whose_trials_fail_when_it_is_submitted_then_the_job_has_failed(
    cluster: RayNodes, tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(
        '[trial]\ncommand = "exit 3"\n[machine]\nvcpus = 1\nmemory = "256M"\nappend = "quiet"\n'
    )
    submit = ("ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", str(tmp_path))
    with pytest.raises(AssertionError, match="status 3"):
        typed(cluster, 0, tmp_path, *submit, "--", "coremesh", "sweep", "sweep.toml", "--address", "auto")


@pytest.mark.parametrize("where", ["auto", "host:port"])
def test_given_a_cluster_when_boot_and_sweep_are_given_its_address_then_they_run_on_its_nodes(
    cluster: RayNodes, tmp_path: Path, where: str
) -> None:
    address = "auto" if where == "auto" else cluster.address
    size = ("--vcpus", "2", "--hosts", "2", "--memory", "256M")
    run = "nproc; cat /sys/devices/system/node/online"
    assert typed(cluster, 0, tmp_path, "coremesh", "boot", "--address", address, *size, "--run", run) == (
        "2\n0-1\n"
    )
    out = tmp_path / "out.csv"
    (tmp_path / "sweep.toml").write_text(SWEEP.format(out=out))
    typed(cluster, 0, tmp_path, "coremesh", "sweep", "sweep.toml", "--address", address)
    require_result(rows_of(out), cluster)
