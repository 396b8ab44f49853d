# SPDX-License-Identifier: GPL-2.0-or-later
"""Device models, one file a chip, the device node that serves them, and the firmware tables."""
