# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines on Ray: the handle, its host processes, where they run, and that none of them is left behind."""
