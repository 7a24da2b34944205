"""Lets the tests of this folder share a robot with somebody beside it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
