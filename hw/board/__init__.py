# SPDX-License-Identifier: GPL-2.0-or-later
"""Boards: which chips a machine has, where they answer, and which interrupts they drive."""
