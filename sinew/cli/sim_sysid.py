"""Find the parameters with which a simulated robot moves as the real one was recorded to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from demos import Dataset
    from sim.identify import Identified
    from sim.plant import Plant, Trajectory

SENT = "sent.joint_position"
"""Column of what the safety gate let through, in recordings on a robot."""
GAP = 1.5
"""Frames farther apart than so many periods are not of one piece."""
LEAD_S = 0.4
BURSTS = 3.0
"""From what ratio of what is left over it is told that it comes in bursts; 1 is normal noise."""


@dataclass(frozen=True, kw_only=True)
class Sysid:
    """Find the parameters with which a simulated robot moves as the real one was recorded to, and how sure they are."""

    data: Path
    """Dataset with joint positions and the joint positions that were commanded."""
    robot: str
    """Robot that was recorded: a name of sinew robot list, a JSON file, or a simulated task for its arm."""
    out: Path
    """File to write, for --randomise: each parameter with its middle and half of its 95 % interval, 0 where that is undetermined."""
    parameters: tuple[str, ...] = ("armature", "friction_loss", "servo_stiffness", "servo_damping", "payload", "action_delay")
    """What is looked for: these, damping (which acts as servo_damping does) and servo_lag; each of every joint, but for payload,
    action_delay and servo_lag."""
    episodes: str = ""
    """Episodes to use, such as 0-9,12; all if left out."""
    seconds: float = 60.0
    """Seconds of motion that are fitted at most, taken evenly."""
    window: float = 3.0
    """Seconds that are simulated from what was measured at their beginning; no longer than the shortest episodes that shall count."""
    held_out: float = 0.25
    """Share of the windows that is not fitted, but predicted; 0 for none."""
    restarts: int = 6
    """Directions along which the search begins anew from what it found, to both sides; it takes about as many times as long, and one search
    alone, 0, may end beside the best."""
    seed: int = 0
    """Of the windows that are held out."""
    json: bool = False
    """Print one JSON object."""


def identify(args: Sysid, progress: Progress = SILENT) -> dict[str, Any]:
    """Identify a robot, and write what was found as a randomisation.

    Raises:
        InputError: no such robot, the data hold no commands or no positions of its joints, or too few in a row.
    """
    from demos import Dataset
    from sim.identify import LAG_MAX_S, unknowns
    from sim.identify import identify as search
    from sim.plant import windows
    from sinew.rundir import write_json

    _check(args)
    data = Dataset(args.data)
    robot = _Robot.of(args.robot, data)
    plant = robot.plant
    wanted = unknowns(plant, args.parameters, robot.payload)
    try:
        pieces = _pieces(data, robot, args.episodes)
        lead = round((LEAD_S + (4 * LAG_MAX_S if "servo_lag" in args.parameters else 0.0)) * data.fps)
        steps = max(round(args.window * data.fps), lead + 2)
        every = windows(pieces, steps)
        order = np.random.default_rng(args.seed).permutation(len(every))
        apart = min(round(args.held_out * len(every)), len(every) - 1)
        fitted = order[apart:][: max(1, round(args.seconds * data.fps / steps))]
        progress.note(f"{len(fitted)} windows of {steps} steps are fitted, {apart} are held out")
        found = search(
            plant,
            wanted,
            every[np.sort(fitted)],
            every[np.sort(order[:apart])] if apart else None,
            lead,
            progress.note,
            args.restarts,
        )
    finally:
        plant.close()
    about = _about(args, data, found, plant)
    parameters = _entries(found, plant)
    if parameters:
        write_json(args.out, {"about": about, "parameters": parameters})
    return {"file": str(args.out) if parameters else None, **about, "parameters": parameters}


def _check(args: Sysid) -> None:
    limits = {"seconds": (args.seconds, 1, 3600), "window": (args.window, 0.5, 60), "held-out": (args.held_out, 0, 0.9),
              "restarts": (args.restarts, 0, 30)}  # fmt: skip
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise InputError(f"--{name} {value:g}: from {low:g} to {high:g} is possible")
    if not args.parameters:
        raise InputError("--parameters names none: leave it out to look for the usual ones")


@dataclass(frozen=True)
class _Robot:
    """A robot to identify, and how it reads a dataset."""

    plant: Plant
    joints: tuple[str, ...]
    """As the dataset names them."""
    payload: int
    """Number of the body that stands for the payload."""
    task: str = ""
    """Simulated task whose arm it is."""

    @classmethod
    def of(cls, name: str, data: Dataset) -> _Robot:
        """The robot of that name, commanded at the rate of the data.

        Raises:
            InputError: there is none.
        """
        import sim

        return cls._of_task(name, data.fps) if name in sim.TASK_NAMES else cls._of_config(name, data.fps)

    @classmethod
    def _of_task(cls, task: str, rate_hz: float) -> _Robot:
        from sim.patterns import add_payload, payload_body
        from sim.plant import Plant
        from sim.scene import load_scene

        scene = load_scene(task)
        assert scene.spec is not None  # scenes of registered tasks know it
        spec, arm = scene.spec.copy(), scene.robots[0]
        if len(scene.robots) != 1:
            raise InputError(f"--robot {task}: its scene has {len(scene.robots)} arms; take a task with one")
        add_payload(spec, arm.tool)
        model = spec.compile()
        return cls(Plant(model, arm.joints, arm.actuators, rate_hz), arm.joints, model.body(payload_body(arm.tool)).id, task)

    @classmethod
    def _of_config(cls, name: str, rate_hz: float) -> _Robot:
        import mujoco

        import sim
        from robot_bridge.robots import load_robot
        from robot_bridge.robots.mjcf import mjcf
        from sim.patterns import add_payload, payload_body
        from sim.plant import Plant

        try:
            config = load_robot(name)
        except InputError as e:
            raise InputError(f"{e}; or a simulated task for its arm: {', '.join(sim.TASK_NAMES)}") from None
        spec = mujoco.MjSpec.from_string(mjcf(config))  # type: ignore[attr-defined]  # mujoco ships no type stubs
        add_payload(spec, config.tools[0])
        model, joints = spec.compile(), config.spec.joint_names
        return cls(Plant(model, joints, joints, rate_hz), joints, model.body(payload_body(config.tools[0])).id)


def _pieces(data: Dataset, robot: _Robot, chosen: str) -> list[Trajectory]:
    """Commands and measurements, as long as frames follow each other evenly."""
    from sim.plant import Trajectory
    from sinew.cli.data_edit import numbers
    from sinew.specs import STATE

    if STATE not in data.observation_spec.tensors:
        raise InputError(f"{data.root} has no {STATE}: nothing tells where the joints were")
    state, names = data.column(STATE), data.observation_spec[STATE].names
    position = _columns(state, names, [f"{joint}.position" for joint in robot.joints], data, "positions")
    command = _commands(data, robot, position)
    speeds = [f"{joint}.velocity" for joint in robot.joints]
    velocity = _columns(state, names, speeds, data, "velocities") if set(speeds) <= set(names) else None
    pieces = []
    for episode in numbers(chosen, data.num_episodes, "--episodes") if chosen else range(data.num_episodes):
        info = data.episode(episode)
        for rows in _even(data, info.start, info.start + info.length):
            rates = np.gradient(position[rows], 1.0 / data.fps, axis=0) if velocity is None else velocity[rows]
            pieces.append(Trajectory(command=command[rows], position=position[rows], velocity=rates))
    return pieces


def _even(data: Dataset, start: int, end: int) -> list[slice]:
    """Rows of an episode, apart where a frame is missing."""
    if "timestamp_ns" not in data.info["features"]:
        return [slice(start, end)] if end - start > 1 else []
    stamps = data.column("timestamp_ns").reshape(-1)[start:end]
    cuts = start + 1 + np.flatnonzero(np.diff(stamps) > GAP * 1e9 / data.fps)
    edges = [start, *cuts.tolist(), end]
    return [slice(a, b) for a, b in pairwise(edges) if b - a > 1]


def _columns(values: np.ndarray, names: Sequence[str], wanted: Sequence[str], data: Dataset, what: str) -> np.ndarray:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(f"{data.root} holds no {what} of {missing[0]!r}; its state is {', '.join(names)}: is it of another robot?")
    return values[:, [names.index(name) for name in wanted]].astype(np.float64)


def _commands(data: Dataset, robot: _Robot, position: np.ndarray) -> np.ndarray:
    """(frames, J) joint positions that were commanded: those that the gate let through, the actions, or what a task makes of them.

    Raises:
        InputError: nothing tells them.
    """
    from sinew.specs import ACTION

    spec = data.action_spec
    if SENT in data.info["features"]:
        sent = data.column(SENT).reshape(len(data), -1)
        if sent.shape[1] != len(robot.joints):
            raise InputError(f"{data.root} was sent positions of {sent.shape[1]} joints, {', '.join(robot.joints)} are {len(robot.joints)}")
        return sent.astype(np.float64)
    actions = data.column(ACTION)
    if spec.kind == "joint_position" and data.bounds_are_told:
        return _columns(actions, spec.names, robot.joints, data, "commands")
    if spec.kind == "ee_delta" and robot.task:
        return _decoded(data, robot.task, actions, position)
    raise InputError(
        f"{data.root} holds no commands to joints: its actions are {spec.kind}, and there is no column {SENT!r} as recordings on a robot "
        "have it (sinew collect --teleop, sinew improve --record); record with --action joint_position"
    )


def _decoded(data: Dataset, task: str, actions: np.ndarray, position: np.ndarray) -> np.ndarray:
    """What the decoder of a simulated task made of displacements, from the joints that were measured."""
    import sim

    decoder, made = sim.make_interface(task).decoder(1), np.zeros_like(position)
    for episode in range(data.num_episodes):
        info = data.episode(episode)
        decoder.reset(position[info.start][None])
        for row in range(info.start, info.start + info.length):
            made[row] = decoder.decode(actions[row][None], position[row][None])[0][0]
    return made


def _entries(found: Identified, plant: Plant) -> list[dict[str, Any]]:
    """What was found, as entries of a randomisation: what is determined within its interval, what is not where it goes with the rest."""
    from sim.identify import NORMAL_95, unit_of

    if not found.found:
        return []
    determined = [(one.slot, one.value, NORMAL_95 * one.error) for one in found.found]
    return [
        {
            "what": slot.what,
            **({"of": [f"*{slot.name}"]} if slot.name else {}),
            "centre": float(f"{value:.6g}"),
            "width": float(f"{width:.3g}"),
            "unit": unit_of(plant.model, slot),
        }
        for slot, value, width in determined + [(one.slot, one.value, 0.0) for one in found.open]
    ]


def _about(args: Sysid, data: Dataset, found: Identified, plant: Plant) -> dict[str, Any]:
    return {
        "robot": args.robot,
        "data": str(args.data),
        "hash": data.content_hash(),
        "rate_hz": data.fps,
        "error_fitted_rad": {"before": found.fitted_rad[0], "after": found.fitted_rad[1]},
        "error_held_out_rad": None if found.held_out_rad is None else dict(zip(("before", "after"), found.held_out_rad, strict=True)),
        "left_over_rad": dict(zip(plant.joints, found.noise_rad, strict=True)),
        "bursts": found.bursts,
        "undetermined": {one.slot.label: one.why for one in found.open},
    }


def show(result: dict[str, Any], console: Console) -> None:
    """What was found, what was not, and how well it predicts."""
    for entry in result["parameters"]:
        name, value = [entry["what"], *(of.removeprefix("*") for of in entry.get("of", ()))], f"{entry['centre']:.5g}"
        why = result["undetermined"].get(".".join(name))
        known = f" ± {entry['width']:.2g} {entry['unit']}" if why is None else f" {entry['unit']}, undetermined: {why}"
        console.print(f"{' '.join(name)}: {value}{known}", highlight=False)
    for what, words in (("error_fitted_rad", "fitted"), ("error_held_out_rad", "held out")):
        if result[what]:
            before, after = (1e3 * result[what][when] for when in ("before", "after"))
            console.print(f"error over what was {words}: {before:.3g} mrad before, {after:.3g} mrad after", highlight=False)
    if result["bursts"] > BURSTS:
        told = (
            "the robot alone does not explain it: did it touch or carry something? Intervals do not count that; leave it out (--episodes)"
        )
        console.print(f"what is left over comes in bursts, {result['bursts']:.2g} times its usual size: {told}", highlight=False)
    if result["file"]:
        console.print(f"written: {result['file']}; use it with --randomise {result['file']}", highlight=False, soft_wrap=True)
    else:
        for name, why in result["undetermined"].items():
            console.print(f"{' '.join(name.split('.'))}: undetermined: {why}", highlight=False)
        console.print("nothing was determined, so no file was written: record faster and wider motions", highlight=False)
