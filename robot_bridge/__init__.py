"""Transports, control loop, safety gate and deployment: everything between a policy and a robot.

The classes are exported here, imported on first use; the function `deploy` is in the module of that name.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "GateConfig": "gate",
    "SafetyGate": "gate",
    "ControlLoop": "loop",
    "SteppedClock": "clock",
    "MonotonicClock": "clock",
    "SimRobot": "sim_robot",
    "SimScene": "sim_robot",
    "DdsRobot": "dds_robot",
    "DdsScene": "dds_robot",
    "DeployConfig": "deploy",
    "DeployReport": "deploy",
    "make_gate": "deploy",
    "serve": "serve_sim",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value
