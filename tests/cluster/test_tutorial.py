# SPDX-License-Identifier: GPL-2.0-or-later
"""The guide, followed as printed: the tutorial from the first guest on, and the cookbook's files of sweeps.

tests/fresh has the set-up before it.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from coremesh.cluster.machine.images.debian_image import DebianImage

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "deploy" / "docs" / "tutorial.md").read_text()
COOKBOOK = (ROOT / "deploy" / "docs" / "cookbook.md").read_text()


def typed(line: str, folder: Path) -> str:
    """What a command of the page prints, with this installation, and `folder` for /tmp."""
    line = line.replace(".venv/bin/", f"{Path(sys.executable).parent}/").replace("/tmp/", f"{folder}/")
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.timeout(1800)
def test_given_the_tutorial_when_it_is_followed_then_each_command_does_what_the_page_says(
    debian: DebianImage, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    lines = re.findall(r"^    (\.venv/bin/coremesh .*)$", PAGE, re.M)
    boot, dry, run = lines
    assert typed(boot, tmp_path).startswith("4\n")
    assert "9 trials would run" in typed(dry, tmp_path)
    assert not list(tmp_path.iterdir())
    typed(run, tmp_path)
    assert len((tmp_path / "hashing.csv").read_text().splitlines()) == 10
    assert "data:image/png;base64," in (tmp_path / "hashing.html").read_text()
    program = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S))
    assert "import coremesh" in program and "def pipes" in program
    script = tmp_path / "tutorial.py"
    script.write_text(f"import matplotlib\nmatplotlib.use('agg')\n{program}\nprint(len(result))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "9"


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.timeout(900)
def test_given_the_cookbooks_files_when_they_are_swept_then_each_has_a_number_in_every_row(
    debian: DebianImage, tmp_path: Path
) -> None:
    """A pattern that finds nothing in what this guest's programs print is a row with an error."""
    command, together = re.findall(r"```toml\n(.*?)```", COOKBOOK, re.S)
    (tmp_path / "command.toml").write_text(command)
    typed(".venv/bin/coremesh sweep /tmp/command.toml --out /tmp/run.csv", tmp_path)
    rows = (tmp_path / "run.csv").read_text().splitlines()[1:]
    assert len(rows) == 2 and all(float(row.split(",")[2]) > 0 for row in rows)
    (tmp_path / "together.toml").write_text(f'[trial]\ncommand = "true"\n{together}')
    listed = typed(".venv/bin/coremesh sweep /tmp/together.toml --dry-run", tmp_path)
    assert "vcpus=64, memory=1G" in listed and "2 trials would run" in listed
