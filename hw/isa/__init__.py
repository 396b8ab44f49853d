# SPDX-License-Identifier: GPL-2.0-or-later
"""The chips of a PC's ISA bus, one file a chip."""
