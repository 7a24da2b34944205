"""ros2 launch sinew teleop.launch.py arguments:="…": drive the robot of this ROS 2 graph by hand with `sinew teleop`."""

from sinew.cli.launching import DOMAIN, REACH, Argument, description

ARGUMENTS = (
    Argument(name="arguments", description="arguments of sinew teleop, as on a command line", default="", kind="words"),
    DOMAIN,
    REACH,
)


def generate_launch_description():
    return description(("teleop",), ARGUMENTS, "sinew_teleop")
