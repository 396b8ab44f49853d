# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the command ``coremesh`` begins and ends: commands.py has its commands and options.

While commands are being imported, nothing was started yet, and Ctrl-C ends the process at once. From then on
a signal, like an error, ends it by an exception.
"""

from __future__ import annotations

import sys

from coremesh.cluster.cli import process

USAGE_STATUS = 2
FAILURE_STATUS = 1
CRASH_STATUS = 70
LOST_STATUS = 69
OUTPUT_STATUS = 74  # EX_IOERR of sysexits.h
NO_READER_STATUS = 141  # what a shell says of a program that SIGPIPE has ended


def main() -> None:
    """Run the command line and leave with its exit status; errors of ours are one message, no traceback."""
    process.leave_at_once_on_signals()
    process.open_standard_streams()
    from coremesh.core.errors import OutputError

    try:
        try:
            status = _run()
        finally:
            process.close_output()
    except OutputError as error:
        status = NO_READER_STATUS if error.no_reader else _fail(error, OUTPUT_STATUS)
    # A second signal, while Ray is being stopped: the warden cleans up.
    process.leave_at_once_on_signals()
    _leave_ray(status)
    sys.exit(status)


def _leave_ray(status: int) -> None:
    """End Ray, and this process with it if Ray's threads do not come back in time."""
    if "coremesh.cluster.launch.session" in sys.modules:
        from coremesh.cluster.launch import private_ray, session

        session.shutdown()
        private_ray.leave(status)


def _run() -> int:
    from coremesh.cluster.cli import commands
    from coremesh.core.errors import (
        ConfigurationError,
        CoremeshError,
        GuestCrashError,
        HostLostError,
        OutputError,
    )

    try:
        for argument in sys.argv[1:]:
            if not _is_utf8(argument):  # Ray stores a program's command line as text, and fails with another
                raise ConfigurationError(f"the argument {argument!r} is not UTF-8 text.")
        commands.app()
    except GuestCrashError as error:
        return _fail(error, CRASH_STATUS)
    except HostLostError as error:
        return _fail(error, LOST_STATUS)
    except ConfigurationError as error:
        return _fail(error, USAGE_STATUS)
    except OutputError:
        raise
    except CoremeshError as error:
        return _fail(error, FAILURE_STATUS)
    except SystemExit as leaving:
        if process.received:  # inside a call to Ray, an exit asked for by a signal has lost its status
            return 128 + process.received[0]
        return leaving.code if isinstance(leaving.code, int) else FAILURE_STATUS if leaving.code else 0
    return 0


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fail(error: Exception, status: int) -> int:
    process.say(error)
    return status
