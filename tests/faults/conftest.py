"""What the fault tests share: processes, the arm of tests, waiting for conditions."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _shared() -> ModuleType:
    """The fixtures of the bridge's tests, which live in their folder."""
    path = Path(__file__).resolve().parents[1] / "robot_bridge" / "conftest.py"
    spec = importlib.util.spec_from_file_location("bridge_fixtures", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_bridge = _shared()
domain, spawn, serve, spec, physics = _bridge.domain, _bridge.spawn, _bridge.serve, _bridge.spec, _bridge.physics


def _until(done: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := done():
            return value
        time.sleep(0.005)
    raise AssertionError("did not happen in time")


@pytest.fixture
def until() -> Callable[..., Any]:
    """Wait until a function gives something, with a generous deadline."""
    return _until
