# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands behind a device: the person at a console, disk images, networks."""
