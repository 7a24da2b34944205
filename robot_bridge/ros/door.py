"""The one door to rclpy: what the bridge needs of it, and message classes by name."""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any

from robot_bridge.transport import Profile
from sinew.errors import InputError, MissingDependency

try:
    import rclpy
    from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
    from rclpy.duration import Duration
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
    from rclpy.node import Node
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from rclpy.serialization import deserialize_message, serialize_message
    from rclpy.signals import SignalHandlerOptions
    from rclpy.subscription import Subscription
    from rclpy.task import Future
except ImportError as e:
    raise MissingDependency(
        "the ros2 transport needs rclpy, which comes with ROS 2: source /opt/ros/<distribution>/setup.bash, "
        f"or use dds, which needs no ROS ({e})"
    ) from None

__all__ = [
    "STAMPED",
    "Duration",
    "Future",
    "LifecycleNode",
    "MutuallyExclusiveCallbackGroup",
    "Node",
    "QoSProfile",
    "ReentrantCallbackGroup",
    "SignalHandlerOptions",
    "SingleThreadedExecutor",
    "TransitionCallbackReturn",
    "deserialize_message",
    "message_class",
    "profile_of",
    "qos",
    "rclpy",
    "serialize_message",
    "service_class",
]  # fmt: skip

STAMPED = hasattr(Subscription, "CallbackType")
"""Whether this rclpy tells a subscription's callback when a sample was sent; Humble's does not."""
DISTRO = os.environ.get("ROS_DISTRO", "<distribution>")


@cache
def message_class(name: str) -> Any:
    """Class that rclpy has of a message, by its long name, "sensor_msgs/msg/JointState".

    Raises:
        InputError: its package is not part of this ROS 2.
    """
    package, kind, message = name.split("/")
    try:
        return getattr(import_module(f"{package}.{kind}"), message)
    except (ImportError, AttributeError):
        raise InputError(f"ROS 2 message {name} is not installed here: apt install ros-{DISTRO}-{package.replace('_', '-')}") from None


@cache
def service_class(kind: str) -> Any:
    """Class that rclpy has of a service, "std_srvs/Trigger", or of one that an action is made of, "control_msgs/GripperCommand_SendGoal".

    Raises:
        InputError: its package is not part of this ROS 2.
    """
    package, *_, name = kind.split("/")
    action, _, part = name.rpartition("_")
    if part in ("SendGoal", "GetResult"):
        return getattr(message_class(f"{package}/action/{action}").Impl, f"{part}Service")
    return message_class(f"{package}/srv/{name}")


def feedback_class(name: str) -> Any:
    """Class that rclpy has of an action's feedback message, "control_msgs/action/GripperCommand_FeedbackMessage"."""
    package, _, message = name.split("/")
    return message_class(f"{package}/action/{message.removesuffix('_FeedbackMessage')}").Impl.FeedbackMessage


def topic_class(name: str) -> Any:
    """Class that rclpy has of what a topic carries, by its long name."""
    return feedback_class(name) if name.endswith("_FeedbackMessage") else message_class(name)


def qos(profile: Profile, *, writer: bool) -> Any:
    """A profile as QoS of rclpy; a lifespan is the writer's alone, as Fast DDS' readers would go by the sender's clock."""
    made = QoSProfile(depth=profile.depth)
    made.reliability = ReliabilityPolicy.RELIABLE if profile.reliable else ReliabilityPolicy.BEST_EFFORT
    made.durability = DurabilityPolicy.TRANSIENT_LOCAL if profile.latched else DurabilityPolicy.VOLATILE
    if writer and profile.lifespan_s is not None:
        made.lifespan = Duration(nanoseconds=round(profile.lifespan_s * 1e9))
    return made


def profile_of(found: Any) -> Profile:
    """What rclpy's QoS of an endpoint come to."""
    return Profile(
        reliable=found.reliability != ReliabilityPolicy.BEST_EFFORT,
        depth=max(found.depth, 1),
        latched=found.durability == DurabilityPolicy.TRANSIENT_LOCAL,
    )
