"""ros2 launch sinew deploy.launch.py run:=/path/to/run robot:=ur5e: run a trained policy on the robot of this ROS 2 graph."""

from sinew.cli.launching import DOMAIN, REACH, TRANSPORT, Argument, description

ARGUMENTS = (
    Argument(name="run", description="folder of a run, or https://host:port of a sinew serve", option=""),
    Argument(name="robot", description="which robot: ur5e, or a file of sinew robot add", default="", option="--robot-config"),
    Argument(name=TRANSPORT.name, description=TRANSPORT.description, default="ros2", choices=TRANSPORT.choices, option="--robot"),
    Argument(name="task", description="task; the one of the run if left out", default=""),
    Argument(name="instruction", description="what a language policy is told to do", default=""),
    Argument(name="episodes", description="episodes to run", default="1", kind="count", low=1, high=100_000),
    Argument(name="scene", description="whether /sinew/scene sets up and judges episodes", default="false", kind="flag"),
    Argument(name="start_pose", description="home: go there first; here: stay", default="here", choices=("home", "here")),
    Argument(name="yes", description="go to the home pose without asking", default="false", kind="flag"),
    Argument(name="first_run", description="no tool faster than 0.25 m/s", default="false", kind="flag"),
    Argument(name="controller_rate", description="commands per second to the robot", default="100.0", kind="number", low=1, high=1000),
    Argument(name="timeout", description="seconds to wait for the robot", default="10.0", kind="number", low=0.1, high=3600),
    Argument(name="executor", description="how chunks are executed", default="sync", choices=("sync", "async", "rtc")),
    Argument(name="device", description="where the policy runs: cpu, cuda", default="cpu"),
    Argument(name="token_file", description="secret of a policy server", default="", kind="file"),
    Argument(name="record", description="dataset that is recorded", default=""),
    Argument(name="mcap", description="bag of every topic, a new .mcap file", default="", kind="new"),
    DOMAIN,
    REACH,
)


def generate_launch_description():
    return description(("deploy",), ARGUMENTS, "sinew_deploy")
