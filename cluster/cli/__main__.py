# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m coremesh.cluster.cli``: the command ``coremesh``, of this interpreter."""

from coremesh.cluster.cli import main

main()
