# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables that firmware would leave in memory: ACPI and the MP table."""
