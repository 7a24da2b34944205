"""The part of `sinew data` that knows ROS 2 bags: what they hold, converting, recording."""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.cli import data_formats
from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from robot_bridge.contract import Contract


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Make a dataset of ROS 2 bags, other MCAP files, robomimic's HDF5, Diffusion Policy's zarr, RLDS or LeRobot v2; or those of one."""

    source: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Bags (.mcap, .db3, folders, or a folder of such); or one dataset, of ours, LeRobot's or another format."""
    out: Path
    """What is made; must not exist. A dataset is a folder, a bag a .mcap file or a folder."""
    to: Literal["lerobot", "mcap", "foxglove", "hdf5"] | None = None
    """lerobot; mcap: topics as the robot's contract has them; foxglove: MCAP to look at, video passed through; robomimic's hdf5. lerobot of
    what is no dataset and mcap of a dataset if left out."""
    state: tuple[str, ...] = ()
    """Of foreign formats: vectors that make up observation.state, by their names there; the usual ones if left out."""
    environment: tuple[str, ...] = ()
    """Of foreign formats: vectors that make up observation.environment_state."""
    cameras: tuple[str, ...] = ()
    """Of foreign formats: pictures that are wanted; all if left out."""
    action: str = ""
    """Of foreign formats: the action, where there are several."""
    action_kind: Literal["joint_position", "joint_delta", "ee_delta", "ee_pose"] | None = None
    """Of foreign formats: what the action commands, where the format does not tell."""
    fps: int | None = None
    """Of foreign formats: frames per second, where the format does not tell."""
    contract: str | None = None
    """Which topics hold what: a robot by name or JSON file, or a run or dataset with a contract; the one in the source if left out."""
    task: str | None = None
    """What is done, in words; what the markers tell if left out."""
    markers: str | None = None
    """Topic that tells where episodes begin; ours if it is there, else each bag is one episode. Empty for none."""
    success: str | None = None
    """Topic of std_msgs/Bool whose last word in an episode tells whether it succeeded."""
    json: bool = False
    """Print one JSON object."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Record every topic of the ROS 2 graph into an MCAP bag until Ctrl-C."""

    out: Path
    """The bag: a new .mcap file or folder."""
    topics: tuple[str, ...] = ()
    """Topics that are wanted; all if left out."""
    contract: str | None = None
    """A robot by name or JSON file, kept in the bag, so that converting needs no --contract."""
    transport: Literal["dds", "ros2"] = "dds"
    """dds: ROS 2's wire format, without ROS 2; ros2: rclpy."""
    domain: int | None = None
    """DDS domain; ROS_DOMAIN_ID or 0 if left out."""
    reach: str | None = None
    """LOCALHOST, SUBNET, or the network interface that DDS keeps to, as eth0; ROS_AUTOMATIC_DISCOVERY_RANGE or this machine only if
    left out."""
    duration: float | None = None
    """Seconds after which it ends by itself."""
    with_parent: bool = False
    """End when the process that started this one ends, however it ends; Linux only."""
    json: bool = False
    """Print one JSON object at the end."""
    seed: int = 0
    """Has no effect here; every verb takes it."""


def convert(args: Convert) -> dict[str, Any]:
    """Convert, and tell what was made.

    Raises:
        InputError: several datasets, or a target that is there already.
        DataError: a source is no bag and no dataset.
    """
    from demos.layout import INFO
    from robot_bridge.bag_export import to_bag
    from robot_bridge.bags import bags_in, to_dataset
    from sinew.cli.console_progress import ConsoleProgress

    foreign = data_formats.convert(args)
    if foreign is not None:
        return foreign
    datasets = [path for path in args.source if (path / INFO).exists()]
    to = args.to or ("mcap" if datasets else "lerobot")
    data_formats.check_free(args.out)
    told = contract_named(args.contract) if args.contract else None
    with ConsoleProgress() as progress, data_formats.whole(args.out) as out:
        if to == "mcap":
            if len(args.source) != 1 or not datasets:
                raise InputError(f"--to mcap takes one dataset; given are {', '.join(map(str, args.source))}")
            done = to_bag(args.source[0], out, contract=told, progress=progress)
        else:
            if datasets:
                raise InputError(f"{datasets[0]} is a dataset already; --to lerobot takes bags")
            bags = [bag for path in args.source for bag in bags_in(path)]
            done = to_dataset(bags, out, contract=told, task=args.task, episodes=args.markers, success=args.success, progress=progress)
    return {"action": "convert", "to": to, "out": str(args.out), **vars(done)}


def contract_named(name: str) -> Contract:
    """The contract of a robot by name or file, or the one that a run, dataset or contract file holds.

    Raises:
        InputError: there is none.
    """
    from robot_bridge import contract as contracts
    from robot_bridge.robots import load_robot

    path = Path(name)
    if path.is_dir() or (path.is_file() and "sources" in _object_in(path)):
        found = contracts.load(path)
        if found is None:
            raise InputError(f"--contract {name} holds no {contracts.FILE}; give a robot, or a run or dataset that has one")
        return found
    return load_robot(name).contract


def _object_in(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def record(args: Record) -> dict[str, Any]:
    """Record until SIGINT, SIGTERM or the time is over.

    Raises:
        InputError: the bag cannot be written, or DDS cannot start.
    """
    from demos.bags import Topic
    from robot_bridge import markers
    from robot_bridge.bag_recorder import READY, BagRecorder
    from robot_bridge.bags import CONTRACT
    from robot_bridge.dds.messages import definition, full_name, type_hash
    from robot_bridge.transport import open_transport
    from sinew.cli.robot import end_with_parent
    from sinew.config import to_json

    if args.duration is not None and not args.duration > 0:
        raise InputError(f"--duration {args.duration:g}: above 0 s is needed")
    told = contract_named(args.contract) if args.contract else None
    if args.with_parent:
        end_with_parent()
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    node = open_transport(args.transport, "sinew_record", domain=args.domain, reach=args.reach)
    recorder = BagRecorder(node, args.out, topics=args.topics or None)
    if told is not None:
        name = full_name(markers.TEXT)
        topic = Topic(name=CONTRACT, type=name, definition=definition(name), type_hash=type_hash(name), latched=True)
        recorder.put(topic, markers.text(json.dumps({"contract": to_json(told)})))
    print(f"{READY} into {args.out}, DDS domain {node.domain} ({node.reach}); Ctrl-C ends it", file=sys.stderr, flush=True)
    end.wait(args.duration)
    recorder.close()
    missing = sorted(set(args.topics) - set(recorder.topics))
    topics = {"topics": list(recorder.topics), "passed_over": recorder.passed_over, "missing": missing}
    return {"action": "record", "out": str(args.out), "messages": recorder.writer.count, **topics}


def look(path: Path, action: str) -> dict[str, Any]:
    """What a bag holds ("info"), what is wrong with it ("check"), or it mended ("repair").

    Raises:
        DataError: no bag, or nothing in it can be read.
    """
    from demos.bags import Bag, mend

    told: dict[str, Any] = {"action": action, "bag": str(path), "findings": []}
    if action == "repair":
        done = mend(path)
        findings = [{"level": "warning", "where": str(path), "message": line} for line in done.damage]
        return {**told, "messages": done.messages, "actions": list(done.actions), "findings": findings}
    bag = Bag(path)
    counts = bag.counts
    topics = [{"name": n, "type": t.type, "messages": counts[n], "latched": t.latched} for n, t in sorted(bag.topics.items())]
    if action == "check":
        for _ in bag.messages():
            pass
        lines = [*bag.damage, *([] if bag.whole or bag.damage else [f"{path} has no end: it was cut off"])]
        told["findings"] = [{"level": "error", "where": str(path), "message": line} for line in lines]
    return {**told, "messages": sum(counts.values()), "topics": topics}


def show(result: dict[str, Any], console: Console) -> None:
    """What was made, or what a bag holds."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    for line in result.get("actions", ()):
        say(f"done     {line}")
    for finding in result.get("findings", ()):
        say(f"{finding['level']:<8} {finding['message']}")
    if result["action"] == "convert":
        for line in result["damage"]:
            say(f"warning  {line}")
        dropped = f", {result['dropped']} messages could not be used" if result["dropped"] else ""
        say(f"{result['out']}: {result['episodes']} episodes, {result['frames']} frames{dropped}")
        return
    if result["action"] == "record":
        for name, why in result["passed_over"].items():
            say(f"warning  {name} was not recorded: {why}")
        for name in result["missing"]:
            say(f"warning  nobody published {name}")
        say(f"{result['out']}: {result['messages']} messages of {len(result['topics'])} topics")
        return
    for topic in result.get("topics", ()):
        say(f"{topic['messages']:>9}  {topic['name']}  {topic['type']}{'  latched' if topic['latched'] else ''}")
    advice = f"; try: sinew data repair {result['bag']}" if result["findings"] and result["action"] == "check" else ""
    say(f"{result['bag']}: {result['messages']} messages{advice}")
