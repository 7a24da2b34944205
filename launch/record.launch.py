"""ros2 launch sinew record.launch.py out:=/path/to/bag: record every topic of this ROS 2 graph into an MCAP bag.

With teleop:=topic, or another device, a person demonstrates instead, and out:= is a dataset: as teleop.launch.py.
"""

from sinew.cli.launching import COLLECTION, DOMAIN, REACH, TRANSPORT, Argument, Instead, description

ARGUMENTS = (
    Argument(name="out", description="the bag: a new .mcap file or folder; with teleop:= the dataset, which may be there", kind="new"),
    Argument(name="robot", description="which robot: its contract is kept in the bag, or it is moved", default="", option="--contract"),
    Argument(name="topics", description="topics that are wanted, separated by spaces; all if left out", default="", kind="list"),
    Argument(name="duration", description="seconds after which it ends", default="", kind="number", low=0.1, high=1e6),
    TRANSPORT,
    DOMAIN,
    REACH,
)
DEVICE = Argument(name="teleop", description="a person's device, to record demonstrations: topic, leader, lerobot:NAME", default="")


def generate_launch_description():
    return description(
        ("data", "record"), ARGUMENTS, "sinew_record", Instead(given="teleop", verb=("collect",), arguments=(DEVICE, *COLLECTION))
    )
