"""ros2 launch sinew calibrate.launch.py arguments:="…": calibrate cameras and hand-eye with `sinew calibrate`."""

from sinew.cli.launching import Argument, description

ARGUMENTS = (Argument(name="arguments", description="arguments of sinew calibrate, as on a command line", default="", kind="words"),)


def generate_launch_description():
    return description(("calibrate",), ARGUMENTS, "sinew_calibrate")
