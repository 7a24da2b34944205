"""ros2 launch sinew sim.launch.py task:=lift: a simulated robot that speaks ROS 2."""

import sys

from launch.actions import DeclareLaunchArgument, EmitEvent, ExecuteProcess, OpaqueFunction
from launch.events import Shutdown
from launch.substitutions import EnvironmentVariable, LaunchConfiguration

from launch import LaunchDescription


def generate_launch_description():
    domain = EnvironmentVariable("ROS_DOMAIN_ID", default_value="0")
    reach = EnvironmentVariable("ROS_AUTOMATIC_DISCOVERY_RANGE", default_value="SUBNET")
    return LaunchDescription(
        [
            DeclareLaunchArgument("task", default_value="lift", description="task whose scene is simulated; see 'sinew tasks'"),
            DeclareLaunchArgument("seed", default_value="0", description="seed of the first scene"),
            DeclareLaunchArgument("rate", default_value="100.0", description="joint states per second"),
            DeclareLaunchArgument("cameras", default_value="", description="cameras to publish, separated by spaces: front wrist"),
            DeclareLaunchArgument("image_size", default_value="84", description="height and width of the images in pixels"),
            DeclareLaunchArgument("domain", default_value=domain, description="DDS domain"),
            DeclareLaunchArgument("reach", default_value=reach, choices=["LOCALHOST", "SUBNET"], description="how far discovery reaches"),
            OpaqueFunction(function=_robot),
        ]
    )


def _robot(context):
    def given(name):
        return LaunchConfiguration(name).perform(context)

    command = [sys.executable, "-m", "sinew", "robot", "--task", given("task"), "--seed", given("seed"), "--rate", given("rate")]
    command += ["--image-size", given("image_size"), "--domain", given("domain"), "--reach", given("reach")]
    if given("cameras").split():
        command += ["--cameras", *given("cameras").split()]
    end = EmitEvent(event=Shutdown(reason="the robot ended"))
    return [ExecuteProcess(cmd=command, name="sinew_sim", output="screen", on_exit=[end])]
