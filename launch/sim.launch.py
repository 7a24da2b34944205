"""ros2 launch sinew sim.launch.py task:=lift: a simulated robot that speaks ROS 2."""

from sinew.cli.launching import DOMAIN, REACH, Argument, description

ARGUMENTS = (
    Argument(name="task", description="task whose scene is simulated; see 'sinew tasks'", default="lift"),
    Argument(name="seed", description="seed of the first scene", default="0", kind="count", low=0, high=2**31 - 1),
    Argument(name="rate", description="joint states per second", default="100.0", kind="number", low=1, high=1000),
    Argument(name="cameras", description="cameras to publish, separated by spaces: front wrist", default="", kind="list"),
    Argument(name="image_size", description="height and width of the images in pixels", default="84", kind="count", low=1, high=4096),
    Argument(name="compressed", description="publish JPEG images besides raw ones", default="false", kind="flag"),
    DOMAIN,
    REACH,
)


def generate_launch_description():
    return description(("robot",), ARGUMENTS, "sinew_sim")
