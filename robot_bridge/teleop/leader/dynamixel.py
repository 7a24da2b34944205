"""Dynamixel servos of the X series, protocol 2.0: numbers of models and registers from Robotis' e-Manual."""
# dynamixel-sdk is an extra that type checkers may not find.
# pyright: reportMissingImports=false

from __future__ import annotations

from robot_bridge.teleop.leader.servos import Maker
from sinew.errors import MissingDependency

MODELS = {
    "xl330-m077": 1190, "xl330-m288": 1200, "xl430-w250": 1060, "xc330-m181": 1230, "xc330-m288": 1240, "xc330-t181": 1210,
    "xc330-t288": 1220, "xc430-w150": 1070, "xc430-w240": 1080, "xm430-w210": 1030, "xm430-w350": 1020, "xm540-w150": 1130,
    "xm540-w270": 1120, "xh430-w210": 1010, "xh430-w350": 1000,
}  # fmt: skip


def maker() -> Maker:
    """The servos, and the library that speaks to them.

    Raises:
        MissingDependency: dynamixel-sdk is not installed.
    """
    try:
        import dynamixel_sdk
    except ImportError:
        raise MissingDependency("a leader arm of Dynamixel servos needs dynamixel-sdk: pip install 'sinew[teleop]'") from None
    return Maker(name="dynamixel", library=dynamixel_sdk, protocol=2.0, models=MODELS, torque=64, position=(132, 4), decode=_signed)


def _signed(number: int) -> int:
    """32 bits in two's complement."""
    return number - (1 << 32) if number & (1 << 31) else number
