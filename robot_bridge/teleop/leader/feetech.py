"""Feetech servos of the STS series: numbers of models and registers from Feetech's memory table of the STS3215."""
# feetech-servo-sdk is an extra that type checkers may not find.
# pyright: reportMissingImports=false

from __future__ import annotations

from robot_bridge.teleop.leader.servos import Maker
from sinew.errors import MissingDependency

MODELS = {"sts3215": 777, "sts3250": 2825}


def maker() -> Maker:
    """The servos, and the library that speaks to them.

    Raises:
        MissingDependency: feetech-servo-sdk is not installed.
    """
    try:
        import scservo_sdk
    except ImportError:
        raise MissingDependency("a leader arm of Feetech servos needs feetech-servo-sdk: pip install 'sinew[teleop]'") from None
    return Maker(name="feetech", library=scservo_sdk, protocol=0, models=MODELS, torque=40, position=(56, 2), decode=_signed)


def _signed(number: int) -> int:
    """15 bits, and a sign."""
    return -(number & 0x7FFF) if number & 0x8000 else number
