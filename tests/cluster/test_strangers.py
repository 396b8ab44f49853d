# SPDX-License-Identifier: GPL-2.0-or-later
"""What another user of the computer, and the network, can reach of a running machine: what SECURITY.md says.

A machine of two hosts is booted as a person would, in a home and a temporary folder of its own. Then a
process of the user `nobody` tries, and the kernel's tables say which process listens where.
"""

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from coremesh.cluster.launch import warden

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user"),
]

COMMAND = [sys.executable, "-m", "coremesh.cluster.cli"]
NOBODY = 65534
SPIN = b"\xeb\xfe"
HI_AND_SPIN = bytes.fromhex("66baf803") + b"".join(b"\xb0" + bytes([c]) + b"\xee" for c in b"hi\r\n") + SPIN
SECURITY = Path(__file__).parents[2] / "deploy" / "SECURITY.md"


@dataclass
class Booted:
    """A machine that runs, and where its process may have left something."""

    process: subprocess.Popen[bytes]
    family: Any
    home: Path
    temporary: Path

    @property
    def folder(self) -> Path:
        return next(self.temporary.glob(f"coremesh-{self.process.pid}-*"))

    def processes(self) -> dict[int, str]:
        """All processes of the machine and their command lines; some of Ray's overwrite their environment."""
        found: dict[int, str] = self.family.members()
        for pid in warden.writers(str(self.folder)):
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found


@pytest.fixture(scope="module")
def booted(
    module_family: Any, tiny_guest: Callable[[bytes], bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Booted]:
    kernel = tmp_path_factory.mktemp("kernel") / "kernel"
    kernel.write_bytes(tiny_guest(HI_AND_SPIN))
    family = module_family
    # As /tmp: everybody may write there. Its name is short, for there are Unix sockets below.
    temporary = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    temporary.chmod(0o1777)
    home = temporary / "home"
    home.mkdir(mode=0o700)
    environment = {
        name: value
        for name, value in family.environment.items()
        if not name.startswith("RAY_") and name != "XDG_RUNTIME_DIR"
    }
    environment |= {"HOME": str(home), "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        # Over ZeroMQ the hosts have links that listen; over shared memory they have none.
        [*COMMAND, "boot", "--hosts", "2", "--wire", "zmq", "--memory", "16M", "--kernel", str(kernel)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"hi\n"
        yield Booted(process, family, home, temporary)
    finally:
        process.terminate()
        process.wait(30)
        subprocess.run(["rm", "-rf", str(temporary)], check=False)


def as_nobody(work: Callable[[], Any]) -> Any:
    """Do `work` in a process of the user `nobody`; return what it returns, as JSON has it."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writer, json.dumps(work()).encode())
            status = 0
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def refused(action: Callable[[], Any]) -> bool:
    """Whether the kernel refuses `action`."""
    try:
        action()
    except PermissionError:
        return True
    return False


# --- files -----------------------------------------------------------------------------------------------


def test_given_a_machine_when_another_user_looks_at_what_it_made_then_none_can_be_written(
    booted: Booted,
) -> None:
    made = {str(booted.temporary)}
    for pid in booted.processes():
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    made.add(str(link.readlink()).removesuffix(" (deleted)"))
    for root, folders, files in os.walk(booted.temporary):
        made |= {str(Path(root, name)) for name in (*folders, *files)}
    here = {path for path in made if path.startswith("/") and not path.startswith("/dev/null")}
    assert any("/logs/" in path for path in here), "the walk has missed Ray's logs"

    def writable() -> list[str]:
        return sorted(path for path in here if os.access(path, os.W_OK))

    # The folder that stands for /tmp may be written: that is the test's own doing.
    assert as_nobody(writable) == [str(booted.temporary)]


def test_given_its_shared_memory_when_another_user_opens_it_then_that_is_refused(
    booted: Booted,
) -> None:
    for pid in booted.processes():
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target, status = str(link.readlink()), link.stat()
                    # Among them the store in /dev/shm, which has no name any more.
                    if target.startswith("/dev/shm/") and stat.S_ISREG(status.st_mode):
                        assert status.st_mode & 0o077 == 0, target


def test_given_its_folder_when_another_user_plants_a_link_then_that_is_refused(
    booted: Booted,
) -> None:
    logs = next(booted.folder.rglob("logs"))
    sockets = next(booted.folder.rglob("sockets"))
    token = booted.folder / "token"

    def attack() -> list[bool]:
        def enter(path: Path) -> Callable[[], Any]:
            def connect() -> None:
                with socket.socket(socket.AF_UNIX) as end:
                    end.connect(str(path))

            return connect

        return [
            refused(lambda: (logs / "raylet.err.1").symlink_to("/etc/passwd")),
            refused(lambda: (logs / "worker.out").write_text("")),
            refused(lambda: (sockets / "raylet").unlink()),
            refused(enter(sockets / "raylet")),
            refused(token.read_text),
            refused(lambda: booted.folder.rename(booted.temporary / "mine")),
            refused(lambda: list(booted.folder.iterdir())),
        ]

    assert as_nobody(attack) == [True] * 7


def test_given_a_fresh_home_when_it_has_booted_then_nothing_lies_there(booted: Booted) -> None:
    assert list(booted.home.rglob("*")) == []


# --- sockets ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listener:
    """A listening socket: the kind of process that has it, and its address without the port."""

    process: str
    address: str


def listeners(booted: Booted) -> set[Listener]:
    """The listening sockets of a machine's processes, by the kernel's tables (proc(5))."""
    return {listener for listener, _ in sockets_of(booted)}


def tcp_ports(booted: Booted) -> set[int]:
    return {port for _, port in sockets_of(booted) if port}


def sockets_of(booted: Booted) -> set[tuple[Listener, int]]:
    """Each listening socket and its port, 0 for a Unix socket."""
    owners: dict[str, str] = {}
    for pid, command in booted.processes().items():
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if found := re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())):
                        owners[found[1]] = kind_of(command)
    found_ones = set()
    for table, family_of in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in owners:  # TCP_LISTEN
                address, port = internet_address(words[1], family_of), int(words[1].split(":")[1], 16)
                found_ones.add((Listener(owners[words[9]], address), port))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[3], 16) & 0x10000 and words[6] in owners:  # __SO_ACCEPTCON
            found_ones.add((Listener(owners[words[6]], words[7].rpartition("/")[2]), 0))
    return found_ones


def internet_address(text: str, family: socket.AddressFamily) -> str:
    digits = text.split(":")[0]
    # Words of 32 bits in the host's order.
    raw = b"".join(bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8))
    return socket.inet_ntop(family, raw).removeprefix("::ffff:")


def kind_of(command: str) -> str:
    first = command.split(" ")[0]
    if first.startswith("ray::"):
        return first.split(".")[0].removeprefix("ray::")
    return "coremesh" if "coremesh.cluster.cli" in command else Path(first).name


def named_in_the_page() -> set[Listener]:
    """The rows of the page's table of listening sockets."""
    rows = re.findall(r"^\| `([^`|]+)` \| `([^`|]+)` \|", SECURITY.read_text(), re.MULTILINE)
    return {Listener(process, address) for process, address in rows}


def test_given_a_machine_when_its_sockets_are_listed_then_they_are_those_of_the_page(
    booted: Booted,
) -> None:
    page = named_in_the_page()
    pid = str(booted.process.pid)
    # The kernel tells the name that a socket was bound to; telemetry.py renames its socket once it is served.
    found = {
        Listener(one.process, one.address.replace(f"{pid}.new", "PID.sock")) for one in listeners(booted)
    }
    assert Listener("raylet", "127.0.0.1") in found, "the look has missed Ray's sockets"
    assert found <= page, f"not on the page: {found - page}"
    assert {one for one in page if one.process != "IDLE"} <= found, f"only on the page: {page - found}"


KNOCK = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1], cluster_id=None)
except Exception as error:
    print(type(error).__name__)
else:
    print("let in")
"""


def test_given_its_ray_when_another_user_joins_then_only_the_token_opens(booted: Booted) -> None:
    port = next(booted.folder.rglob("gcs_server_port_*")).read_text()

    def knock(**more: str) -> str:
        environment = {**os.environ, "HOME": "/nonexistent", **more}
        done = subprocess.run(
            [sys.executable, "-c", KNOCK, f"127.0.0.1:{port}"],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.stdout.strip()

    token = booted.folder / "token"
    assert knock(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)) == "let in"
    assert knock(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64) == "AuthenticationError"
    assert knock(RAY_AUTH_MODE="disabled") == "AuthenticationError"


def grpc_call(port: int, service: str, token: str) -> bytes:
    """Call a service of Ray with an empty message, as HTTP/2 has it (RFC 9113); return what comes back."""

    def field(
        name: str, value: str
    ) -> bytes:  # RFC 7541, 6.2.2: a literal that is not indexed, no Huffman code
        return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    fields = {
        ":method": "POST", ":scheme": "http", ":path": f"/ray.rpc.{service}", ":authority": "x",
        "content-type": "application/grpc", "te": "trailers",
    }  # fmt: skip
    if token:
        fields["authorization"] = f"Bearer {token}"
    headers = b"".join(field(name, value) for name, value in fields.items())
    answer = b""
    try:
        end = socket.create_connection(("127.0.0.1", port), 2)
    except TimeoutError:
        return b""  # a link: its packet filter drops what does not come from a peer
    with end, contextlib.suppress(OSError):
        end.settimeout(3)
        end.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(4, 0, 0, b"")  # SETTINGS
            + frame(1, 4, 1, headers)  # HEADERS, END_HEADERS
            + frame(0, 1, 1, bytes(5))  # DATA, END_STREAM: a message of no bytes
        )
        while b"grpc-status" not in answer and (more := end.recv(65536)):
            answer += more
        answer += end.recv(65536)  # the status itself, if it was cut off
    return answer


SERVICES = (
    "InternalKVGcsService/InternalKVKeys",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "CoreWorkerService/GetCoreWorkerStats",
)
LET_IN, UNKNOWN_SERVICE, NO_TOKEN = b"grpc-status\x010", b"grpc-status\x0212", b"grpc-status\x0216"


def test_given_its_ports_when_a_stranger_calls_each_service_then_none_works(booted: Booted) -> None:
    ports = tcp_ports(booted)
    token = (booted.folder / "token").read_text()
    with ThreadPoolExecutor(16) as pool:
        calls = [(port, service) for port in sorted(ports) for service in SERVICES]
        without = dict(zip(calls, pool.map(lambda to: grpc_call(to[0], to[1], ""), calls), strict=True))
        wrong = dict(zip(calls, pool.map(lambda to: grpc_call(to[0], to[1], "0" * 64), calls), strict=True))
        right = dict(zip(calls, pool.map(lambda to: grpc_call(to[0], to[1], token), calls), strict=True))
    for answers in (without, wrong):
        for call, answer in answers.items():
            assert LET_IN not in answer, call
            assert (
                UNKNOWN_SERVICE in answer
                or NO_TOKEN in answer
                or answer.startswith((b"HTTP/1.0 40", b"HTTP/1.1 40"))  # the agent for runtime environments
                or answer == b""
            ), (call, answer)
    # The control: who has the token is let in by each kind of service.
    assert {service for (_, service), answer in right.items() if LET_IN in answer} == set(SERVICES)
    assert {service for (_, service), answer in without.items() if NO_TOKEN in answer} == set(SERVICES)


# --- the page --------------------------------------------------------------------------------------------


def test_given_the_page_when_it_names_a_test_then_there_is_one() -> None:
    root = SECURITY.parents[1] / "tests"
    named = re.findall(r"`((?:cluster|unit)/[\w/]+\.py)::(\w+)`", SECURITY.read_text())
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}(" in (root / file).read_text(), f"{file} has no {test}"


def test_given_a_machine_when_it_ends_then_its_temporary_folder_is_empty(
    booted: Booted,
) -> None:
    booted.process.terminate()
    assert booted.process.wait(30) == 143
    deadline = time.monotonic() + 10
    while (left := [path.name for path in booted.temporary.iterdir()]) != ["home"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
