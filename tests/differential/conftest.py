# SPDX-License-Identifier: GPL-2.0-or-later
"""The differential tests import their neighbours, and the machines of the guest tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "guest" / "mesh"))
