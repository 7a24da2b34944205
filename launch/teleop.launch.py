"""ros2 launch sinew teleop.launch.py teleop:=topic out:=/data/lift: a person moves the robot of this ROS 2 graph, and it is recorded."""

from sinew.cli.launching import COLLECTION, Argument, description

ARGUMENTS = (
    Argument(name="teleop", description="the device: topic, leader, gamepad, spacemouse, browser, lerobot:NAME", default="topic"),
    *COLLECTION,
)


def generate_launch_description():
    return description(("collect",), ARGUMENTS, "sinew_teleop")
