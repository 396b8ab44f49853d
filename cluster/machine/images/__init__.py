# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest images: a kernel and its user programs, fetched once, verified at each use."""
