# SPDX-License-Identifier: GPL-2.0-or-later
"""What may be on an IDE channel."""

from coremesh.hw.ata.cdrom import Cdrom
from coremesh.hw.ata.disk import Disk

Drive = Disk | Cdrom
"""Either has ``native``, its registers, and ``reset``, the RESET- pin to what is not native."""
