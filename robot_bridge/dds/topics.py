"""Which topics a robot speaks on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

COMMANDS: Mapping[str, tuple[str, str]] = {
    "position": ("/forward_position_controller/commands", "std_msgs/Float64MultiArray"),
    "trajectory": ("/joint_trajectory_controller/joint_trajectory", "trajectory_msgs/JointTrajectory"),
}
"""Topic and message per way of commanding."""
RESET = "/sinew/scene/reset"
"""std_msgs/Int64: start the episode of this seed."""
EPISODE = "/sinew/scene/episode"
"""std_msgs/Int64: the episode of this seed has started."""
SUCCESS = "/sinew/scene/success"
"""std_msgs/Bool: whether the task is solved."""
STATUS = "/sinew/scene/status"
"""std_msgs/String: "following" or "holding", the watchdog's state."""


@dataclass(frozen=True, kw_only=True)
class RobotTopics:
    """Names of a robot's topics and frames."""

    joint_states: str = "/joint_states"
    transforms: str = "/tf"
    world_frame: str = "world"
    """Parent of the object frames; other transforms are passed over."""
    command: Literal["position", "trajectory"] = "position"
    """Float64MultiArray with joints and then grippers, or JointTrajectory with one point."""
    command_topic: str = ""
    """Empty for the usual one of `command`."""
    compressed: bool = False
    """Images come as CompressedImage on <camera>/image_raw/compressed."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Image topic per camera; /<camera>/image_raw where it is not given."""

    @property
    def command_name(self) -> str:
        """Topic that commands are sent on."""
        return self.command_topic or COMMANDS[self.command][0]

    @property
    def command_message(self) -> str:
        """Message that commands are sent as."""
        return COMMANDS[self.command][1]

    def image(self, camera: str) -> str:
        """Topic of a camera's images."""
        return self.images.get(camera) or f"/{camera}/image_raw" + ("/compressed" if self.compressed else "")
