"""A Python with a stand-in for Isaac Gym, unless whoever runs the tests names one with the real one."""

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def isaac_gym(tmp_path_factory: pytest.TempPathFactory) -> None:
    if "SINEW_ISAACGYM_PYTHON" in os.environ:
        return
    script = tmp_path_factory.mktemp("isaacgym") / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{Path(__file__).parent / "fake_isaacgym"}" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    os.environ["SINEW_ISAACGYM_PYTHON"] = str(script)
