# SPDX-License-Identifier: GPL-2.0-or-later
"""A folder of this computer for a guest, by the protocol 9P2000.L."""
