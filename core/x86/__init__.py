# SPDX-License-Identifier: GPL-2.0-or-later
"""What the x86-64 PC decides in Python: the processor, where memory is, how a kernel starts."""
