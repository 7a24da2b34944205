"""Who is on the network of a robot, and what stands in the way: every problem with its remedy in one line."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from robot_bridge.dds import local
from robot_bridge.dds.messages import full_name, make
from robot_bridge.transport import CYCLONE, SENSOR, Endpoint, Transport
from sinew.errors import DataError, InputError

COMMAND_TYPES = ("std_msgs/Float64MultiArray", "trajectory_msgs/JointTrajectory", "geometry_msgs/TwistStamped")
COMMAND_ENDS = ("/commands", "/joint_trajectory", "/delta_twist_cmds")
"""Topics of these types and endings move robots."""
SYSTEM = ("/rosout", "/parameter_events")
MOST_WATCHED = 40
"""Topics whose rate is measured, at most."""
CLOCK_S = 0.1
"""Stamps further from the receipt than this are told of."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is wrong, and what to do."""

    what: str
    remedy: str
    blocks: bool = True
    """Whether a robot cannot be used while it is so."""


@dataclass(frozen=True, kw_only=True)
class TopicSeen:
    """A topic, from its endpoints and what came on it."""

    name: str
    types: list[str]
    publishers: list[str]
    """Nodes; "?" for one that is not known."""
    subscribers: list[str]
    rate_hz: float | None = None
    """None where it was not listened to."""
    behind_s: float | None = None
    """Receipt after the sender's stamp, in seconds, by the clocks of both: the least of all samples."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found."""

    domain: int
    reach: str
    nodes: Mapping[str, str]
    """Node to vendor of its DDS."""
    topics: Sequence[TopicSeen]
    controllers: Mapping[str, str] | None
    """Controller to state; None where no controller manager could be asked."""
    processes: Sequence[local.Process]
    """DDS processes of this machine, whether they were met or not."""
    problems: Sequence[Problem] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"processes": [process._asdict() for process in self.processes]}


def survey(transport: Transport, settle_s: float = 3.0, watch_s: float = 2.0, vendor: str = CYCLONE) -> Survey:
    """Look around: wait for discovery, listen to every topic, ask the controller managers.

    Args:
        transport: a node that nobody else uses.
        settle_s: time for others to be discovered; ROS 2 nodes may take seconds.
        watch_s: time over which rates are measured.
        vendor: whose DDS the transport speaks; services of others cannot be used. Empty where it is not known.
    """
    time.sleep(settle_s)
    watched = _watch(transport, watch_s)
    endpoints = [each for each in transport.endpoints() if each.name not in SYSTEM]
    topics = _topics(endpoints, watched)
    controllers, unasked = _controllers(transport)
    here = local.processes()
    nodes = transport.nodes()
    problems = [
        *_absences(transport, nodes, here),
        *_wrong_types(topics),
        *_unmatched(endpoints),
        *_rivals(topics),
        *_clocks(topics),
        *_vendors(nodes, vendor),
        *unasked,
        *_idle_controllers(controllers),
        *(_missing_topics(topics) if nodes else ()),
    ]
    return Survey(
        domain=transport.domain,
        reach=transport.reach,
        nodes=nodes,
        topics=topics,
        controllers=controllers,
        processes=here,
        problems=problems,
    )


# ---------------------------------------------------------------- looking


def _watch(transport: Transport, watch_s: float) -> dict[str, tuple[int, float | None]]:
    """Listen to all topics whose type is known: samples, and how far their stamps lie behind."""
    heard = {}
    for name, message in list(transport.topics().items())[:MOST_WATCHED]:
        try:
            full_name(message)
            heard[name] = transport.subscription(name, message, SENSOR)
        except InputError:
            continue
    counts: dict[str, int] = dict.fromkeys(heard, 0)
    behind: dict[str, list[float]] = {name: [] for name in heard}
    end = time.monotonic() + watch_s
    while time.monotonic() < end:
        time.sleep(0.005)
        for name, subscription in heard.items():
            samples, now_ns = subscription.take(), time.time_ns()
            counts[name] += len(samples)
            behind[name] += [(now_ns - sample.source_ns) / 1e9 for sample in samples[-1:]]
    # of one or two samples alone, a delay is as likely the receiver's as the clock's
    least = {name: min(values) if len(values) > 2 else None for name, values in behind.items()}
    return {name: (counts[name], least[name]) for name in heard} | {"": (0, watch_s)}


def _topics(endpoints: Sequence[Endpoint], watched: Mapping[str, tuple[int, float | None]]) -> list[TopicSeen]:
    watch_s = watched[""][1] or 1.0
    made = []
    for name in sorted({each.name for each in endpoints}):
        here = [each for each in endpoints if each.name == name]
        count, behind_s = watched.get(name, (None, None))
        made.append(
            TopicSeen(
                name=name,
                types=sorted({each.message for each in here}),
                publishers=[each.node or "?" for each in here if each.publishes],
                subscribers=[each.node or "?" for each in here if not each.publishes],
                rate_hz=None if count is None else round(count / watch_s, 1),
                behind_s=None if behind_s is None else round(behind_s, 4),
            )
        )
    return made


def _controllers(transport: Transport) -> tuple[dict[str, str] | None, list[Problem]]:
    """Controllers and their states, of every controller manager that can be asked."""
    managers = [name for name, kind in transport.services().items() if kind == "controller_manager_msgs/ListControllers"]
    states: dict[str, str] = {}
    for service in managers:
        try:
            answer = transport.client(service, "controller_manager_msgs/ListControllers").call(
                make("controller_manager_msgs/ListControllers_Request"), 3.0
            )
        except (InputError, DataError) as e:
            return None, [Problem(what=f"the controllers are not known: {e}", remedy="ros2 control list_controllers", blocks=False)]
        states |= {controller.name: controller.state for controller in answer.controller}
    return (states if managers else None), []


# ---------------------------------------------------------------- judging


def unmatched(publisher: Endpoint, subscription: Endpoint) -> str:
    """Why a publisher's samples never reach a subscription of the same topic and type; empty where they do."""
    offered, wanted = publisher.profile, subscription.profile
    if wanted.reliable and not offered.reliable:
        return "the publisher is best effort and the subscription wants reliable"
    if wanted.latched and not offered.latched:
        return "the publisher is volatile and the subscription wants transient local"
    return ""


def _absences(transport: Transport, nodes: Mapping[str, str], here: Sequence[local.Process]) -> list[Problem]:
    """Settings of discovery that cannot meet."""
    made = []
    if variable := next((v for v in ("ROS_LOCALHOST_ONLY",) if os.environ.get(v) == "1"), ""):
        made.append(
            Problem(
                what=f"{variable}=1 is set here, which binds ROS 2 to the loopback interface and is gone from Jazzy on",
                remedy=f"unset {variable}; export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST",
                blocks=not nodes,
            )
        )
    if nodes:
        return made
    same = [process for process in here if process.domain == transport.domain]
    others = sorted({process.domain for process in here} - {transport.domain})
    for process in same[:1]:
        who = f"{process.command or 'a process'} (pid {process.pid or 'of another user'})"
        if transport.reach == "SUBNET" and not process.multicast:
            remedy = "run with --reach LOCALHOST, or export ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET for it"
            made.append(Problem(what=f"{who} on domain {process.domain} keeps to this machine while we use multicast", remedy=remedy))
        elif transport.reach != "SUBNET" and process.multicast and not process.addressed:
            remedy = "run with --reach SUBNET, or export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST for it"
            made.append(Problem(what=f"{who} on domain {process.domain} uses multicast while we keep to {transport.reach}", remedy=remedy))
        else:
            remedy = "is it up? compare CYCLONEDDS_URI, FASTDDS_DEFAULT_PROFILES_FILE and ROS_AUTOMATIC_DISCOVERY_RANGE of both"
            made.append(Problem(what=f"{who} is on domain {process.domain} and was not met", remedy=remedy))
    if not same and others:
        what = f"nobody is on domain {transport.domain}; DDS processes of this machine are on {', '.join(map(str, others))}"
        made.append(Problem(what=what, remedy=f"export ROS_DOMAIN_ID={others[0]}, or --domain {others[0]}"))
    if not same and not others:
        reach = "SUBNET" if transport.reach != "SUBNET" else "LOCALHOST"
        what = f"nobody was met on domain {transport.domain}, range {transport.reach}"
        made.append(
            Problem(what=what, remedy=f"start the robot's driver (or 'sinew robot'); on another machine: --reach {reach}, and its --domain")
        )
    return made


def _wrong_types(topics: Sequence[TopicSeen]) -> list[Problem]:
    return [
        Problem(
            what=f"topic {topic.name} is of several types, which never meet: {', '.join(topic.types)}",
            remedy=f"ros2 topic info -v {topic.name}; rename one of them",
        )
        for topic in topics
        if len(topic.types) > 1
    ]


def _unmatched(endpoints: Sequence[Endpoint]) -> list[Problem]:
    made = []
    for publisher in (each for each in endpoints if each.publishes):
        for subscription in (each for each in endpoints if not each.publishes and each.name == publisher.name):
            if publisher.message == subscription.message and (why := unmatched(publisher, subscription)):
                what = f"{subscription.node or '?'} hears nothing of {publisher.node or '?'} on {publisher.name}: {why}"
                made.append(Problem(what=what, remedy="give both the same QoS; sensor data is best effort on both sides"))
    return made


def _rivals(topics: Sequence[TopicSeen]) -> list[Problem]:
    return [
        Problem(
            what=f"{len(topic.publishers)} publishers on command topic {topic.name}: {', '.join(topic.publishers)}",
            remedy="two would fight over the robot: stop all but one",
        )
        for topic in topics
        if len(topic.publishers) > 1 and set(topic.types) & {*COMMAND_TYPES} and topic.name.endswith(COMMAND_ENDS)
    ]


def _clocks(topics: Sequence[TopicSeen]) -> list[Problem]:
    """The sender whose stamps are furthest off; one line for all, as it is one clock as a rule."""
    off = [topic for topic in topics if topic.behind_s is not None and not -CLOCK_S < topic.behind_s < CLOCK_S]
    if not off:
        return []
    worst = max(off, key=lambda topic: abs(topic.behind_s or 0.0))
    seconds = statistics.median(topic.behind_s or 0.0 for topic in off)
    way = "behind" if seconds > 0 else "ahead of"
    what = f"stamps of {worst.name} ({', '.join(worst.publishers)}) are {abs(seconds):.2f} s {way} this clock"
    return [Problem(what=what, remedy="synchronise the clocks: chronyc makestep on both machines; or the link is that slow", blocks=False)]


def _vendors(nodes: Mapping[str, str], ours: str) -> list[Problem]:
    foreign = sorted(name for name, who in nodes.items() if who not in ("", ours))
    if not foreign or not ours:
        return []
    vendors = ", ".join(sorted({nodes[name] for name in foreign}))
    named = ", ".join(foreign[:5]) + (" ..." if len(foreign) > 5 else "")
    what = f"services and actions of {named} ({vendors}) cannot be used over {ours}; topics can"
    return [
        Problem(what=what, remedy="export RMW_IMPLEMENTATION=rmw_cyclonedds_cpp for them, or use ros2 where it is sourced", blocks=False)
    ]


def _idle_controllers(controllers: Mapping[str, str] | None) -> list[Problem]:
    if controllers is None:
        return []
    moving = {name: state for name, state in controllers.items() if "broadcaster" not in name}
    if "active" in moving.values():
        return []
    states = ", ".join(f"{name} is {state}" for name, state in controllers.items()) or "none is loaded"
    name = next(iter(moving), "joint_trajectory_controller")
    return [Problem(what=f"no controller takes commands: {states}", remedy=f"ros2 control switch_controllers --activate {name}")]


def _missing_topics(topics: Sequence[TopicSeen]) -> list[Problem]:
    states = [topic for topic in topics if "sensor_msgs/JointState" in topic.types and topic.publishers]
    if not states:
        what = "nobody publishes sensor_msgs/JointState"
        return [
            Problem(
                what=what, remedy="start joint_state_broadcaster: ros2 control load_controller --set-state active joint_state_broadcaster"
            )
        ]
    silent = [topic.name for topic in states if topic.rate_hz == 0.0]
    if len(silent) == len(states):
        return [Problem(what=f"{', '.join(silent)} has a publisher and is silent", remedy="is the driver connected to the robot?")]
    return []
