# SPDX-License-Identifier: GPL-2.0-or-later
"""deploy/setup where something is missing, with an apt-get that does as it is told; nothing is installed."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TOOLS = (
    "cat",
    "dirname",
    "env",
    "id",
    "ls",
    "mkdir",
    "sed",
    "sh",
    "sleep",
    "touch",
    "xargs",
    "chmod",
    "bash",
)

# Fails as many updates and installations as its folder says, then installs: a compiler appears.
APT_GET = """\
#!/bin/sh
echo "$@" >>"{folder}/calls"
for word in "$@"; do
    case $word in update | install) what=$word ;; esac
done
read -r left <"{folder}/$what"
if [ "$left" -gt 0 ]; then
    echo $((left - 1)) >"{folder}/$what"
    echo "E: Some index files failed to download" >&2
    exit 100
fi
[ "$what" = update ] || touch "{folder}/bin/c++" && chmod +x "{folder}/bin/"*
"""


@dataclass
class Machine:
    """A machine with nothing but what is in its `bin`."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def mirror(self, *, failing_updates: int, failing_installations: int) -> None:
        (self.folder / "update").write_text(f"{failing_updates}\n")
        (self.folder / "install").write_text(f"{failing_installations}\n")
        self.program("apt-get", APT_GET.format(folder=self.folder))

    def setup(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [REPOSITORY / "deploy/setup", *words],
            env={"PATH": str(self.folder / "bin"), "SETUP_PAUSE": "0"} | self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, what: str) -> list[str]:
        log = self.folder / "calls"
        return [line for line in log.read_text().splitlines() if f" {what}" in line] if log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine of root's with a Python that will do, without a compiler."""
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool} here"))
    machine = Machine(tmp_path)
    machine.program("id", "#!/bin/sh\necho 0\n")
    machine.program("python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    return machine


def test_given_an_index_that_never_loads_when_set_up_then_the_packages_are_installed(
    machine: Machine,
) -> None:
    machine.mirror(failing_updates=99, failing_installations=0)
    done = machine.setup("--packages-only")
    assert done.returncode == 0, done.stderr
    assert "going on with those that could" in done.stderr
    assert [call.split()[-1] for call in machine.calls("install")] == ["g++"]


def test_given_a_mirror_that_is_being_changed_when_set_up_then_it_is_tried_again(machine: Machine) -> None:
    machine.mirror(failing_updates=1, failing_installations=1)
    done = machine.setup("--packages-only")
    assert done.returncode == 0, done.stderr
    assert (len(machine.calls("update")), len(machine.calls("install"))) == (2, 2)


def test_given_no_mirror_when_set_up_then_it_ends_and_says_what_is_missing(machine: Machine) -> None:
    machine.mirror(failing_updates=99, failing_installations=99)
    done = machine.setup("--packages-only")
    assert done.returncode == 1
    assert "could not be installed: g++" in done.stderr
    assert len(machine.calls("install")) == 3


def test_given_nothing_missing_when_set_up_then_no_package_tool_is_asked(machine: Machine) -> None:
    machine.mirror(failing_updates=99, failing_installations=99)
    machine.program("c++", "#!/bin/sh\n")
    assert machine.setup("--packages-only").returncode == 0
    assert machine.calls("install") == []


def test_given_an_ordinary_user_when_set_up_then_sudo_is_used_or_the_command_for_root_told(
    machine: Machine,
) -> None:
    machine.mirror(failing_updates=0, failing_installations=0)
    machine.program("id", "#!/bin/sh\necho 1000\n")
    done = machine.setup("--packages-only")
    assert done.returncode == 1
    assert "as root: apt-get install g++" in done.stderr

    machine.program("sudo", f'#!/bin/sh\necho "$@" >>"{machine.folder}/sudo.calls"\nexec "$@"\n')
    assert machine.setup("--packages-only").returncode == 0
    assert "install" in (machine.folder / "sudo.calls").read_text()


@pytest.mark.parametrize("version", ["3.10", "3.14"])
def test_given_a_python_that_will_not_do_when_set_up_then_the_versions_are_told(
    machine: Machine, version: str
) -> None:
    machine.mirror(failing_updates=0, failing_installations=0)
    pretend = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0)"
    machine.program(
        "python3", f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" -c "{pretend}; $2"\nexit 9\n'
    )
    done = machine.setup("--packages-only")
    assert done.returncode == 1
    assert "Python 3.11 to 3.13" in done.stderr


def test_given_no_apt_when_set_up_then_it_ends_and_says_what_is_missing(machine: Machine) -> None:
    done = machine.setup("--packages-only")
    assert done.returncode == 1
    assert "missing: g++" in done.stderr


@pytest.mark.parametrize("word", ["tests", "--wheel", "-x"])
def test_given_an_unknown_word_when_set_up_then_it_says_so(machine: Machine, word: str) -> None:
    done = machine.setup(word)
    assert done.returncode == 2
    assert word in done.stderr


def test_given_the_readme_when_ci_runs_then_it_runs_the_test_command_as_printed(tmp_path: Path) -> None:
    """In a tree where set-up and pytest only say that they were called."""
    for name in (".ci/run", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for name in ("deploy/setup", ".venv/bin/pytest"):
        program = tmp_path / name
        program.parent.mkdir(parents=True)
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >>calls\nexit 7\n'
            if "pytest" in name
            else "#!/bin/sh\necho setup $* >>calls\n"
        )
        program.chmod(0o755)
    done = subprocess.run(
        ["bash", tmp_path / ".ci/run"], env=dict(os.environ), capture_output=True, text=True, timeout=60
    )
    assert (tmp_path / "calls").read_text() == "setup test\n.venv/bin/pytest -n 2\n"
    assert done.returncode == 7  # pytest's own


def test_given_a_configure_script_that_failed_when_the_engine_is_built_then_its_words_are_pointed_to(
    tmp_path: Path,
) -> None:
    """An empty configuration gives hundreds of errors about missing declarations otherwise."""
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed; the test extra has it")
    check: list[str | Path] = [cmake, f"-DBUILD={tmp_path}", "-P", REPOSITORY / "core/native/unicorn.cmake"]
    for configuration, status in (("/* nothing found */\n", 1), ("#define CONFIG_POSIX 1\n", 0)):
        (tmp_path / "config-host.h").write_text(configuration)
        done = subprocess.run(check, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stderr
        assert ("config.log" in done.stderr) == (status == 1)
