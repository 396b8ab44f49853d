# SPDX-License-Identifier: GPL-2.0-or-later
"""A Ray cluster that another program started, found and joined, with its token where it asks for one.

``auto`` finds what ``ray start`` of this user or of root started on this computer. It never finds the private
Ray of another process (that would be lost with the process), nor another user's cluster: a process that joins
a cluster runs what the cluster sends. Another user's cluster is joined only by its address.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coremesh.cluster.launch import ray_settings
from coremesh.cluster.launch.private_ray import QUIET, first_line
from coremesh.core.errors import PlatformError

AUTO = "auto"
_KNOCK_SECONDS = 5.0
_ADDRESS_FILE = "ray_current_cluster"  # 'ray start' leaves it in its temporary folder, ray.init() does not
_DEFAULT_FOLDER = "/tmp/ray"


def join(address: str) -> None:
    """Connect this process to the cluster at `address`: host:port, or 'auto'.

    Raises :class:`PlatformError` with what to do if there is none, or if it does not let us in.
    """
    import ray

    target = find() if address == AUTO else address
    ray_settings.quieten()
    token = False
    try:
        with contextlib.ExitStack() as settings:
            if _is_loopback(target) and not _answers(target.replace(_host(target), _network_address())):
                settings.enter_context(ray_settings.loopback_only())
            _knock(target)
            mode = os.environ.get(ray_settings.MODE)
            if mode is None:
                mode = "token" if _asks_for_token(target) else "disabled"
            token = mode == "token" and _may_be_shown_token(target)
            settings.enter_context(ray_settings.token_mode(mode if token or mode != "token" else "disabled"))
            _present_token(target)
            ray.init(address=target, **QUIET)
    except Exception as error:
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise PlatformError(_advice(target, error, sent_token=token)) from error


def find() -> str:
    """Return host:port of the cluster that 'auto' means: RAY_ADDRESS, or the one found on this computer.

    Raises :class:`PlatformError` if there is none, or more than one.
    """
    given = os.environ.get("RAY_ADDRESS", "")
    if given and given not in (AUTO, "local"):
        return given
    found = dict(_started_here())
    if _DEFAULT_FOLDER in found:
        return found[_DEFAULT_FOLDER]
    addresses = sorted(set(found.values()))
    if len(addresses) == 1:
        return addresses[0]
    if addresses:
        raise PlatformError(
            f"several Ray clusters run here: {', '.join(addresses)}. Say which one with --address."
        )
    raise PlatformError(
        "no Ray cluster of yours runs on this machine: 'auto' finds only what 'ray start' started for this "
        "user or root, not the private Ray of another program. Start one with 'ray start --head', give the "
        "address of another one, or leave the address out to run on this machine alone."
    )


def _started_here() -> Iterator[tuple[str, str]]:
    """Give (temporary folder, address) of each raylet of this user or root that 'ray start' started."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if place.stat().st_uid not in (0, os.getuid()):
                continue
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if not words[0].endswith("/raylet/raylet"):
                continue
            options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
            # .../SESSION/sockets/raylet in the folder that was given with --temp-dir
            folder = Path(options["raylet_socket_name"]).parents[2]
            file = folder / _ADDRESS_FILE
            if file.stat().st_uid in (0, os.getuid()) and file.read_text().strip() == options["gcs-address"]:
                yield str(folder), options["gcs-address"]


def _asks_for_token(target: str) -> bool:
    """Whether the cluster at `target` refuses a process without a token.

    To show one where none is asked for does not work: a driver with a token refuses workers without one.
    """
    from ray.exceptions import AuthenticationError

    try:
        with ray_settings.token_mode("disabled"):
            _present_token(target)
    except AuthenticationError:
        return True
    return False


def _may_be_shown_token(target: str) -> bool:
    """Whether the cluster at `target` is shown this user's token.

    As Ray has it: the token goes by itself to a cluster on this computer, to another one only when the person
    says so, for it would go to any program that answers there.
    """
    return ray_settings.own_token_exists() and (
        os.environ.get(ray_settings.MODE) is not None or _is_here(target)
    )


def _present_token(target: str) -> None:
    """Raise Ray's AuthenticationError if the cluster at `target` does not let us in.

    ray.init() would try that twenty times, with a line on standard error each.
    """
    from ray import _raylet
    from ray.exceptions import AuthenticationError

    raylet: Any = _raylet
    if "://" in target:  # the Ray client's, which is not this service
        return
    try:
        with ray_settings.standard_error_aside():
            raylet.GcsClient(address=target)
    except AuthenticationError:
        raise
    except Exception:  # another version of Ray: ray.init() will say more
        return


def _advice(target: str, error: Exception, *, sent_token: bool) -> str:
    from ray.exceptions import AuthenticationError

    if not isinstance(error, AuthenticationError):
        return (
            f"no Ray cluster answers at {target} ({first_line(error)}). Start one with 'ray start --head', "
            "or leave the address out to run on this machine. Where the cluster asks for a token, set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH if it is not in ~/.ray/auth_token."
        )
    if not sent_token and ray_settings.own_token_exists():
        return (
            f"the Ray cluster at {target} asks for a token. Yours is sent to another computer only when you "
            "say so: set RAY_AUTH_MODE=token."
        )
    other = "another token than yours" if sent_token else "a token, and you have none"
    return (
        f"the Ray cluster at {target} asks for {other}. Put the cluster's into ~/.ray/auth_token (mode 600), "
        "or name its file with RAY_AUTH_TOKEN_PATH, and set RAY_AUTH_MODE=token."
    )


# --- addresses -------------------------------------------------------------------------------------------


def _knock(target: str) -> None:
    """Raise OSError if no process listens at host:port: Ray itself would go on asking for minutes."""
    host, colon, port = target.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()


def _answers(target: str) -> bool:
    try:
        _knock(target)
    except OSError:
        return False
    return True


def _host(target: str) -> str:
    return target.rpartition(":")[0].strip("[]")


def _is_loopback(target: str) -> bool:
    host = _host(target)
    return host in ("localhost", "::1") or host.startswith("127.")


def _is_here(target: str) -> bool:
    """Whether the host of `target` is this computer: only its own addresses can be bound."""
    if _is_loopback(target):
        return True
    try:
        family, kind, _, _, place = socket.getaddrinfo(_host(target), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True


def _network_address() -> str:
    """What Ray puts in place of a loopback address."""
    from ray._private import services

    module: Any = services
    return str(module.get_node_ip_address())
