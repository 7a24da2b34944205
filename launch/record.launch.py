"""ros2 launch sinew record.launch.py out:=/path/to/bag: record every topic of this ROS 2 graph into an MCAP bag."""

from sinew.cli.launching import DOMAIN, REACH, TRANSPORT, Argument, description

ARGUMENTS = (
    Argument(name="out", description="the bag: a new .mcap file or folder", kind="new"),
    Argument(name="robot", description="which robot: its contract is kept in the bag", default="", option="--contract"),
    Argument(name="topics", description="topics that are wanted, separated by spaces; all if left out", default="", kind="list"),
    Argument(name="duration", description="seconds after which it ends", default="", kind="number", low=0.1, high=1e6),
    TRANSPORT,
    DOMAIN,
    REACH,
)


def generate_launch_description():
    return description(("data", "record"), ARGUMENTS, "sinew_record")
