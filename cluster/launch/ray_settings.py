# SPDX-License-Identifier: GPL-2.0-or-later
"""How this process speaks to Ray: with which token, on which interface, and where Ray's own words go.

Ray 2.60 takes these from the environment when it is imported, and keeps them. All that reaches into Ray's
private modules for them is here, and undone as soon as Ray has read it: nothing stays in the environment,
which programs that this one starts would inherit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"

_log = logging.getLogger("coremesh.ray")


def own_token_exists() -> bool:
    """Whether this user has a token for Ray's clusters where Ray itself looks for one."""
    return bool(os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH)) or _default_token().is_file()


def _default_token() -> Path:
    return Path("~/.ray/auth_token").expanduser()


@contextlib.contextmanager
def token_mode(mode: str | None, path: Path | None = None) -> Iterator[None]:
    """Let Ray use `mode`, 'token' or 'disabled', and the token in the file `path`.

    None leaves what the environment says. This process keeps them after the block, its environment does not.
    """
    wanted: dict[str, str] = {}
    if mode is not None:
        wanted[MODE] = mode
    if path is not None:
        wanted[TOKEN_PATH] = str(path)
    kept = {name: os.environ.get(name) for name in (MODE, TOKEN, TOKEN_PATH)}
    if path is not None:
        os.environ.pop(TOKEN, None)  # would go before the file
    os.environ.update(wanted)
    try:
        reread()
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def reread() -> None:
    """Let Ray read its settings and its token anew: it keeps those of the last cluster otherwise."""
    from ray import _raylet

    raylet: Any = _raylet  # an extension without types
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Let Ray take 127.0.0.1 for this node's address, and listen there alone.

    Ray replaces a loopback address by one of the network, "to make sure that localhost isn't resolved to the
    loopback IP", but on systems where it has no clusters; this takes Linux for one of them.
    """
    from ray._private import ray_constants

    constants: Any = ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def process_group_of_its_own() -> Iterator[None]:
    """Let Ray start its daemons where a signal to our process group does not reach them.

    A signal to the group (timeout(1), a closing terminal) would end them before us, and to leave a Ray whose
    daemons are dead takes half a minute.
    """
    from ray._private import services

    module: Any = services
    before = module.ConsolePopen

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{"process_group": 0, **options})

    module.ConsolePopen = Popen
    try:
        yield
    finally:
        module.ConsolePopen = before


@contextlib.contextmanager
def without_web_servers() -> Iterator[None]:
    """Let Ray start without dashboard, autoscaler and metrics, of which a Ray for one process has no use.

    It starts sooner without these processes. Where ``ray[default]`` is installed, they listen on ports that
    answer every program, without a token.
    """
    from ray._private import node, services, utils

    daemons: Any = services
    packages: Any = utils
    nodes: Any = node.Node
    before = daemons.start_api_server, packages.get_dashboard_dependency_error, nodes.start_monitor
    daemons.start_api_server = lambda *_, **__: ("", None)
    packages.get_dashboard_dependency_error = lambda: ImportError("not wanted here")
    nodes.start_monitor = lambda _: None
    name = "RAY_enable_metrics_collection"
    kept = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        daemons.start_api_server, packages.get_dashboard_dependency_error, nodes.start_monitor = before
        if kept is None:
            del os.environ[name]
        else:
            os.environ[name] = kept


@contextlib.contextmanager
def standard_error_aside() -> Iterator[None]:
    """Drop what is written to standard error meanwhile, by Ray's native code above all. For a moment only."""
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def quieten() -> None:
    """Send what Ray has to say about workers that ended to a log: it prints that on standard output.

    We tell of a lost host ourselves. ``logging.getLogger("coremesh.ray")`` at level INFO has Ray's words.
    """
    from ray._private import worker

    module: Any = worker
    module.print_to_stdstream = _to_log


def _to_log(data: dict[str, Any], *_: Any, **__: Any) -> None:
    for line in data.get("lines", ()):
        _log.info("%s", line)
