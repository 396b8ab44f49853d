# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine tests import their neighbours: guests of a few bytes, machines without Ray."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
