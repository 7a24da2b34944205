"""ros2 launch sinew calibrate.launch.py mode:=to_hand robot:=ur5e camera:=front yes:=true: the robot takes the views itself."""

from sinew.cli.launching import DOMAIN, REACH, TRANSPORT, Argument, description

ARGUMENTS = (
    Argument(
        name="mode", description="where the camera is: beside the robot, or on its hand", choices=("to_hand", "in_hand"), option="--mount"
    ),
    Argument(name="robot", description="which robot: ur5e, or a file of sinew robot add", default="", option="--robot-config"),
    Argument(name="camera", description="camera of the robot's contract", default="front"),
    Argument(name=TRANSPORT.name, description=TRANSPORT.description, default="ros2", choices=TRANSPORT.choices, option="--robot"),
    Argument(name="controller", description="kind of controller, as trajectory; the robot's usual one if left out", default=""),
    Argument(name="out", description="folder of the result", default="calibration"),
    Argument(name="intrinsics", description="camera.json of the lens; what its driver tells if left out", default="", kind="file"),
    Argument(name="accuracy", description="standard deviation at which it stops, as 0.5mm or 0.5mm,0.1deg", default="0.3mm"),
    Argument(name="views_max", description="views at which it ends in any case", default="25", kind="count", low=3, high=1000),
    Argument(name="speed", description="share of the joints' largest speed", default="0.1", kind="number", low=0.001, high=1),
    Argument(name="columns", description="squares of the ChArUco board in a row", default="8", kind="count", low=2, high=1000),
    Argument(name="rows", description="rows of them", default="6", kind="count", low=2, high=1000),
    Argument(name="square", description="side of a square, m", default="0.03", kind="number", low=1e-4, high=2),
    Argument(name="marker", description="side of the markers, m", default="0.022", kind="number", low=1e-4, high=2),
    Argument(name="resume", description="go on with the views that are in the result's folder", default="false", kind="flag"),
    Argument(name="yes", description="move without asking first; ros2 launch has no terminal to ask in", default="false", kind="flag"),
    Argument(name="publish", description="publish the result on /tf_static until Ctrl-C", default="true", kind="flag"),
    Argument(name="timeout", description="seconds to wait for robot and camera", default="10.0", kind="number", low=0.1, high=3600),
    DOMAIN,
    REACH,
)


def generate_launch_description():
    return description(("calibrate", "handeye"), ARGUMENTS, "sinew_calibrate")
