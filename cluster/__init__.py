# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines, with Ray and without, and the people in front of them."""
