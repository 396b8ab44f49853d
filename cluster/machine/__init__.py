# SPDX-License-Identifier: GPL-2.0-or-later
"""One machine without Ray: what it is to be, how its hosts are put together, started and ended."""
