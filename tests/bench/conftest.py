# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmarks are programs that import each other by name: their folder is on the path, as when run."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
