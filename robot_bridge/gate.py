"""The safety gate under the name that its users know; it lives in `robot_bridge.safety`."""

from __future__ import annotations

from robot_bridge.safety.config import GateConfig
from robot_bridge.safety.gate import SafetyGate
from robot_bridge.safety.operator import Operator
from robot_bridge.safety.states import REASONS, GateEvent, Incident, State, Verdict

__all__ = ["REASONS", "GateConfig", "GateEvent", "Incident", "Operator", "SafetyGate", "State", "Verdict"]
