"""QoS profiles as Cyclone DDS takes them."""

from __future__ import annotations

from typing import Any

from robot_bridge.dds.wire import Policy, Qos, duration
from robot_bridge.transport import DEFAULT, LATCHED, NEWEST, SENSOR, TF, Profile

__all__ = ["DEFAULT", "LATCHED", "NEWEST", "SENSOR", "TF", "Profile", "qos"]


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
        if profile.lifespan_s is not None:
            policies.append(Policy.Lifespan(duration(nanoseconds=round(profile.lifespan_s * 1e9))))
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
