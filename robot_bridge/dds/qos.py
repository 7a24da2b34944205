"""QoS profiles as ROS 2 uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robot_bridge.dds.wire import Policy, Qos, duration


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a topic promises or wants."""

    reliable: bool = True
    depth: int = 10
    latched: bool = False
    """Transient local: who comes later gets the last samples."""


DEFAULT = Profile()
"""rmw_qos_profile_default."""
SENSOR = Profile(reliable=False, depth=5)
"""rmw_qos_profile_sensor_data; as a subscription it matches every publisher."""
NEWEST = Profile(depth=1)
"""Reliable, only the newest counts: commands."""
TF = Profile(depth=100)
LATCHED = Profile(depth=1, latched=True)
"""/tf_static, /robot_description and ros_discovery_info."""


def qos(profile: Profile, user_data: str, *, writer: bool) -> Any:
    """Cyclone's policies for an endpoint."""
    reliable = Policy.Reliability.Reliable(max_blocking_time=duration(milliseconds=100))
    policies = [
        reliable if profile.reliable else Policy.Reliability.BestEffort,
        Policy.Durability.TransientLocal if profile.latched else Policy.Durability.Volatile,
        Policy.History.KeepLast(profile.depth),
        # ROS 2 sends plain XCDR1; without this Cyclone would offer XCDR2 as well
        Policy.DataRepresentation(use_cdrv0_representation=True),
        Policy.Userdata(data=user_data.encode()),
    ]
    if writer:
        policies.append(Policy.WriterDataLifecycle(autodispose=False))
        if profile.latched:
            policies.append(
                Policy.DurabilityService(
                    cleanup_delay=0,
                    history=Policy.History.KeepLast(profile.depth),
                    max_samples=-1,
                    max_instances=-1,
                    max_samples_per_instance=-1,
                )
            )
    return Qos(*policies)
