# SPDX-License-Identifier: GPL-2.0-or-later
"""Experiments: one question asked of many machines, and the answers as one table."""
