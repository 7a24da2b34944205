"""Record demonstrations of a task with its scripted expert."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sinew.cli.scenes import first_scene
from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from sim import GymnasiumTask, Randomisation, TaskInterface
    from sim.gymnasium_tasks import DemonstrationExpert
    from sinew.protocols import VecEnv
    from sinew.specs import TensorSpec

WAVE = 32
"""Worlds stepped side by side; what is recorded does not depend on it."""
GYMNASIUM_WAVE = 4
"""The same for worlds that are stepped one after the other, where many gain nothing."""
COLLECTION = "meta/sinew_collection.json"
"""What a dataset was collected with."""
RANDOMISED = "randomised"
"""Column of what an episode was played with in randomised worlds."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Record demonstrations of a task: of its scripted expert, or of a person with --teleop."""

    task: str
    """Task name; `sinew tasks` lists them. Or a world of Gymnasium as gym:<id>, for example gym:Meta-World/reach-v3. With
    --robot-config what is done, in words."""
    out: Path
    """Folder of the dataset; an interrupted collection there goes on."""
    episodes: int = 100
    """Attempts to record; failures are kept and marked."""
    quality: Literal["clean", "human"] = "clean"
    """clean: nearly always succeeds; human: biased grasps, hesitations, mixed strategies, failures."""
    cameras: tuple[str, ...] = ()
    """Cameras to record: front, wrist. With --robot-config all of the robot's if left out, and none of them with none."""
    image_size: int = 96
    """Height and width of camera images in pixels."""
    randomise: Path | None = None
    """What every episode draws anew, a file of ranges with units: masses, friction, delays, light, cameras, …; kept with every frame;
    docs/simulation.md."""
    robot: Literal["sim", "dds", "ros2"] | None = None
    """A robot of the network on which the expert or the person acts, in real time; sim is one in this process, for a person."""
    teleop: str | None = None
    """A person demonstrates through the control loop and the safety gate, with this device: keyboard, gamepad, spacemouse, leader,
    topic, browser, phone, or one of LeRobot's teleoperators as lerobot:NAME."""
    teleop_config: tuple[Path, ...] = ()
    """What is to be known of that device, a file: of each leader arm, of topics, of a teleoperator of LeRobot; docs/teleop.md."""
    teleop_events: str = ""
    """Topic of std_msgs/String whose words the device gets beside its own: success, failure, discard, pause, intervene, stop."""
    action: Literal["ee_delta", "joint_position"] | None = None
    """What is recorded as a person's action: displacements of the tool, or joint targets; what suits the device if left out."""
    listen: str | None = None
    """Where the page of --teleop browser or phone is served, 127.0.0.1:8443 if left out; 0.0.0.0:8443 opens it to headsets and phones
    on this network."""
    frame: Literal["world", "tool"] = "world"
    """Axes of the person's motions."""
    episode_s: float = 60.0
    """Seconds after which a person's episode ends by itself."""
    robot_config: str | None = None
    """With --teleop on a robot that no simulated task describes: its name, such as ur5e, or a JSON file; `sinew robot list`."""
    controller: str = ""
    """That robot's controller for the joints, where it has several."""
    gripper_controller: str = ""
    """That robot's controller for the gripper."""
    domain: int | None = None
    """DDS domain of that robot; ROS_DOMAIN_ID or 0 if left out."""
    reach: Literal["LOCALHOST", "SUBNET"] | None = None
    """Where to look for it; ROS_AUTOMATIC_DISCOVERY_RANGE or this machine only if left out."""
    calibration: tuple[str, ...] = ()
    """Results of sinew calibrate, kept with the data to tell where the cameras were: folders, or CAMERA=FOLDER."""
    sounds: Literal["none", "bell", "speak"] = "bell"
    """How a person who looks at the robot is told what is recorded: the terminal's bell, or words (spd-say, espeak or say)."""
    seed: int = 0
    """Seed of scenes and of the expert."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Collect, and tell what is there."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return collect(args, progress)


def collect(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """Record the episodes that are still missing.

    Raises:
        InputError: the folder holds a dataset of another task or of other settings.
    """
    import sim
    from demos import Writer
    from sinew import calibrations
    from sinew.cli import calibrated, collect_teleop
    from sinew.config import to_json
    from sinew.rundir import read_json, write_json

    if args.episodes < 1:
        raise InputError(f"--episodes {args.episodes}: at least 1 is needed")
    args = collect_teleop.checked(args)
    interface = _interface(args) if args.teleop is None else collect_teleop.interface_of(args)[0]
    settings = {"task": args.task, "quality": args.quality, "seed": args.seed, "cameras": list(args.cameras), "image_size": args.image_size}
    settings |= {"through": args.robot, "teleop": args.teleop} if args.teleop else {"through": args.robot}
    randomisation = _randomisation(args)
    settings |= {} if randomisation is None else {"randomise": to_json(randomisation)}
    note = args.out / COLLECTION
    if note.exists():
        found = read_json(note)
        differ = [k for k, v in settings.items() if found.get(k) != v]
        if differ:
            raise InputError(
                f"{args.out} holds a collection with {differ[0]} {found.get(differ[0])!r}, not {settings[differ[0]]!r}; take another --out"
            )
    calibration = calibrated.given(args.calibration, calibrated.cameras_of(interface.observation_spec))
    if args.teleop is not None:
        collect_teleop.collect(args, settings, progress, calibration)
        return summary(args.out) if args.out.exists() else {"path": str(args.out), "episodes": 0, "frames": 0, "successes": 0, "hash": ""}
    if args.robot is not None:
        from sinew.cli import collect_robot

        assert isinstance(interface, sim.TaskInterface)  # other worlds are refused above
        collect_robot.collect(args, interface, settings, progress, calibration)
        return summary(args.out)
    if note.exists():
        writer = Writer.resume(args.out, task=interface.task_text, keep_interrupted=False)
    else:
        writer = Writer.create(
            args.out,
            fps=round(interface.action_spec.rate_hz),
            observation_spec=interface.observation_spec,
            action_spec=interface.action_spec,
            robot_type=interface.world if isinstance(interface, sim.GymnasiumTask) else interface.robot_spec.name,
            task=interface.task_text,
            extra=None if randomisation is None else {RANDOMISED: _drawn_spec(interface, randomisation)},
        )
        write_json(note, settings)
    calibrations.begin(args.out, writer.num_episodes, calibration)
    wave = GYMNASIUM_WAVE if isinstance(interface, sim.GymnasiumTask) else WAVE
    period_ns = 1e9 / interface.action_spec.rate_hz  # simulated time: how fast this machine simulates is of no interest
    with writer:
        if writer.num_episodes > args.episodes:
            raise InputError(f"{args.out} holds {writer.num_episodes} episodes, more than --episodes {args.episodes}; take another --out")
        progress.start("collect", args.episodes, done=writer.num_episodes)
        while writer.num_episodes < args.episodes:
            first = writer.num_episodes
            for frames, success in _wave(args, range(first, min(first + wave, args.episodes)), randomisation):
                for step, frame in enumerate(frames):
                    writer.add_frame(frame, stamp_ns=round(step * period_ns))
                writer.save_episode(success=success)
                progress.advance(1)
    return summary(args.out)


def summary(root: Path) -> dict[str, Any]:
    """What a dataset holds: episodes, frames, successes."""
    from demos import Dataset

    data = Dataset(root)
    successes = [bool(data.episode(i).success) for i in range(data.num_episodes)]
    return {"path": str(root), "episodes": data.num_episodes, "frames": len(data), "successes": sum(successes), "hash": data.content_hash()}


def task_of_dataset(root: Path) -> str | None:
    """Task that a dataset of ours was collected on; None for one from elsewhere."""
    from sinew.rundir import read_json

    note = root / COLLECTION
    return read_json(note).get("task") if note.exists() else None


def _interface(args: Args) -> TaskInterface | GymnasiumTask:
    """What is recorded.

    Raises:
        InputError: no such task, or a world of Gymnasium is wanted with what only ours have.
    """
    import sim

    if not args.task.startswith("gym:"):
        return sim.make_interface(args.task, cameras=args.cameras, image_size=args.image_size)
    if args.robot is not None:
        raise InputError(f"--robot {args.robot}: worlds of Gymnasium are on no robot; leave it out for {args.task}")
    if args.cameras or args.quality != "clean":
        given = f"--cameras {' '.join(args.cameras)}" if args.cameras else f"--quality {args.quality}"
        raise InputError(f"{given}: worlds of Gymnasium are recorded as they observe, by one clean expert; leave it out for {args.task}")
    task = sim.GymnasiumTask(args.task)
    task.make_expert(1)  # a world without one is refused before the folder comes into being
    return task


def _randomisation(args: Args) -> Randomisation | None:
    """What is drawn for every episode.

    Raises:
        InputError: the file cannot be, or what is recorded is no simulated task of ours.
    """
    import sim

    if args.randomise is None:
        return None
    if args.robot is not None or args.teleop is not None or args.task.startswith("gym:"):
        what = "worlds of Gymnasium" if args.task.startswith("gym:") else "robots"
        raise InputError(f"--randomise {args.randomise}: {what} are as they are; it is for the expert in a task's own worlds")
    return replace(sim.load_randomisation(args.randomise), curriculum=None)


def _drawn_spec(interface: TaskInterface | GymnasiumTask, randomisation: Randomisation) -> TensorSpec:
    """The column that keeps what a frame's episode was played with."""
    import sim
    from sim.randomised import randomiser_of
    from sinew.specs import TensorSpec

    assert isinstance(interface, sim.TaskInterface)  # other worlds are refused above
    randomiser = randomiser_of(interface, randomisation)[1]
    assert randomiser is not None
    return TensorSpec(shape=(len(randomiser.names),), names=randomiser.names)


def _players(args: Args, n: int, randomisation: Randomisation | None) -> tuple[VecEnv, DemonstrationExpert]:
    """Worlds and the expert that acts in them."""
    import sim

    if args.task.startswith("gym:"):
        task = sim.GymnasiumTask(args.task)
        return task.make_vec(n), task.make_expert(n)
    env = sim.make_vec(args.task, n, cameras=args.cameras, image_size=args.image_size, randomisation=randomisation)
    return env, sim.make_expert(args.task, args.quality, n)


def _wave(args: Args, episodes: range, randomisation: Randomisation | None) -> list[tuple[list[dict[str, Any]], bool]]:
    """Frames and success of episodes played side by side, in the order of their numbers."""
    n = len(episodes)
    first = first_scene("demonstrations", args.seed)
    seeds = [first + i for i in episodes]
    env, expert = _players(args, n, randomisation)
    try:
        obs = env.reset(seeds)
        drawn = {} if randomisation is None else {RANDOMISED: env.values.astype(np.float32)}  # type: ignore[attr-defined]
        expert.reset(list(range(n)), seeds)
        frames: list[list[dict[str, Any]]] = [[] for _ in range(n)]
        success, live = [False] * n, set(range(n))
        while live:
            action = expert.act(obs)
            for i in live:
                seen = {k: v[i].numpy().copy() for k, v in obs.items()}
                frames[i].append({**seen, "action": action[i].numpy().copy(), **{k: v[i] for k, v in drawn.items()}})
            obs, _, terminated, truncated, info = env.step(action)
            for i in [i for i in live if terminated[i] or truncated[i]]:
                success[i] = bool(info["success"][i])
                live.remove(i)
        return list(zip(frames, success, strict=True))
    finally:
        env.close()


def show(result: dict[str, Any], console: Console) -> None:
    """Print one line."""
    console.print(f"{result['path']}: {result['episodes']} episodes, {result['frames']} frames, {result['successes']} successes")
