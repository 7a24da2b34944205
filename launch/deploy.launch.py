"""ros2 launch sinew deploy.launch.py run:=/path/to/run: run a trained policy on the robot of this ROS 2 graph."""

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
            DeclareLaunchArgument("run", description="run directory of the policy"),
            DeclareLaunchArgument("robot", default_value="dds", description="how the robot is reached"),
            DeclareLaunchArgument("episodes", default_value="1", description="episodes to run"),
            DeclareLaunchArgument(
                "scene", default_value="false", choices=["true", "false"], description="whether /sinew/scene sets up and judges episodes"
            ),
            DeclareLaunchArgument("controller_rate", default_value="100.0", description="commands per second to the robot"),
            DeclareLaunchArgument("timeout", default_value="10.0", description="seconds to wait for the robot"),
            DeclareLaunchArgument("domain", default_value=domain, description="DDS domain"),
            DeclareLaunchArgument("reach", default_value=reach, choices=["LOCALHOST", "SUBNET"], description="how far discovery reaches"),
            OpaqueFunction(function=_deploy),
        ]
    )


def _deploy(context):
    def given(name):
        return LaunchConfiguration(name).perform(context)

    command = [sys.executable, "-m", "sinew", "deploy", given("run"), "--robot", given("robot"), "--episodes", given("episodes")]
    command += ["--controller-rate", given("controller_rate"), "--timeout", given("timeout")]
    command += ["--domain", given("domain"), "--reach", given("reach"), "--scene" if given("scene") == "true" else "--no-scene"]
    end = EmitEvent(event=Shutdown(reason="the policy ended"))
    return [ExecuteProcess(cmd=command, name="sinew_deploy", output="screen", on_exit=[end])]
