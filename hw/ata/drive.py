# SPDX-License-Identifier: GPL-2.0-or-later
"""What may be on an IDE channel: a disk or a CD-ROM, which are imported only where there is one."""

from typing import Protocol

from coremesh.core._native import IdeDrive


class Drive(Protocol):
    """A drive on a channel."""

    native: IdeDrive  #: its registers

    def reset(self) -> None:
        """RESET-, to what is not native."""
