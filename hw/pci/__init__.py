# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI: the host bridge and configuration space."""
