# SPDX-License-Identifier: GPL-2.0-or-later
"""Ray actors, the Machine handle, the console and the command line."""
