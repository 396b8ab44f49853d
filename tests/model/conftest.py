# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of models share: verifier.py beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
