"""`--calibration` of the verbs that record or deploy: which cameras it tells of, and whether they are where the policy's data had them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.cli.calibrate_watch import MOVED, READY
from sinew.errors import InputError

if TYPE_CHECKING:
    from calibration.body import Body
    from robot_bridge.calibrating.hand import Hand
    from robot_bridge.camera_check import CameraCheck
    from robot_bridge.gate import Operator
    from robot_bridge.robots import RobotConfig
    from sinew.calibrations import Apart, Calibration
    from sinew.cli.assembly import Source
    from sinew.specs import ObservationSpec


def given(results: Sequence[str], cameras: Sequence[str]) -> Calibration | None:
    """The calibration that `--calibration` names, of the cameras that there are; None where it is left out.

    Args:
        results: paths, or NAME=PATH.
        cameras: names of the cameras that are looked at.

    Raises:
        InputError: no camera of the results is among them.
    """
    if not results:
        return None
    from dataclasses import replace

    from calibration.results import carried, read_named

    found = read_named(results)
    if len(found) == len(cameras) == 1:  # one camera needs no name
        return carried([replace(found[0], name=cameras[0])])
    known = [m for m in found if m.name in cameras]
    if not known and cameras:
        raise InputError(
            f"--calibration tells of camera {', '.join(m.name for m in found)}, looked at are {', '.join(cameras)}: "
            f"give it as {cameras[0]}={results[0]}"
        )
    return carried(known)


def cameras_of(observation: ObservationSpec) -> tuple[str, ...]:
    """Names of the cameras whose pictures are among the observations."""
    from sinew.specs import IMAGES

    return tuple(key.removeprefix(IMAGES) for key in observation.images)


def look(
    results: Sequence[str], calibration: Calibration | None, interface: Any, robot: Any, config: RobotConfig | None
) -> CameraCheck | None:
    """What looks whether the cameras are exchanged, before each episode; None where fewer than two are calibrated.

    Args:
        results: as `--calibration` names them, for the boards that they were made with.
        calibration: of the cameras.
        interface: of the task.
        robot: one of a network tells what its drivers say.
        config: the robot as data; None for a task's.
    """
    if calibration is None or len(calibration.cameras) < 2:
        return None
    from calibration.results import read_board, uncarried
    from robot_bridge.camera_check import CameraCheck, drivers_tell

    cameras = uncarried(calibration)
    names = [m.name for m in cameras]
    boards = [board for result in results if (board := read_board(_path(result))) is not None]
    hand, body = _shape(interface, config)
    node = getattr(robot, "node", None)
    told = None if node is None else lambda: drivers_tell(node, names, robot.contract)
    seen = dict.fromkeys(names, boards[0]) if boards and len(set(boards)) == 1 else {}
    return CameraCheck(cameras, hand, boards=seen, body=body, told=told)


@contextmanager
def watching(args: Any, calibration: Calibration | None, operator: Operator, tell: Callable[[str], None]) -> Iterator[None]:
    """`sinew calibrate watch` beside a deployment, in a process of its own; what has moved presses the emergency stop, as does its end.

    Args:
        args: of `sinew deploy`: calibration, robot, robot_config, domain, reach, timeout.
        calibration: of the cameras that are looked at.
        operator: whose stop is pressed.
        tell: gets its lines.

    Raises:
        InputError: it cannot begin.
    """
    named = [c["name"] for c in (calibration.cameras if calibration is not None else ())]
    results = [f"{named[0]}={_path(args.calibration[0])}"] if len(named) == len(args.calibration) == 1 else list(args.calibration)
    command = [sys.executable, "-m", "sinew", "calibrate", "watch", *results, "--robot", args.robot, "--until-moved", "--with-parent"]
    for option, value in (("domain", args.domain), ("reach", args.reach), ("robot-config", args.robot_config), ("timeout", args.timeout)):
        command += [] if value is None else [f"--{option}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    heard: list[str] = []
    for line in process.stderr:
        heard.append(line.strip())
        if line.startswith(READY):
            break
    else:
        process.wait()
        raise InputError(f"the cameras cannot be watched: {(heard or ['it said nothing'])[-1].removeprefix('sinew: ')}")
    ended = threading.Event()

    def listen() -> None:
        for line in process.stderr or ():
            heard.append(line.strip())
            tell(line.strip())
        if not ended.is_set():
            operator.press(heard[-1] if process.wait() == MOVED else f"the watch of the cameras ended: {heard[-1]}")

    thread = threading.Thread(target=listen, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        process.terminate()
        process.wait()
        thread.join()


def _path(result: str) -> Path:
    return Path(result) if Path(result).exists() else Path(result.partition("=")[2])


def _shape(interface: Any, config: RobotConfig | None) -> tuple[Hand | None, Body | None]:
    """Where a robot's hand is, and what it looks like, as far as that is known."""
    from robot_bridge.body import MujocoBody
    from robot_bridge.calibrating.hand import hand_of, hand_of_task

    if config is None:
        body = MujocoBody(interface.scene.model, interface.robot_spec.joint_names, base="world")
        return hand_of_task(interface), body
    try:
        return hand_of(config), None
    except InputError:
        return None, None


def keep(source: Source, out: Path) -> None:
    """Put what a policy tells of its cameras beside the policy that was made from it."""
    from sinew import calibrations

    if source.run is not None:
        calibrations.store(calibrations.load(source.run.path), out)


def compare(
    now: Calibration | None, run: Path | None, observation: ObservationSpec, allow: bool, tell: Callable[[str], None]
) -> dict[str, Any] | None:
    """Are the cameras of a deployment where those of the policy's data were?

    Args:
        now: the cameras of the deployment; None where nobody told.
        run: folder of the policy; None for one that cannot tell.
        observation: what the policy looks at; where no pictures are among it, cameras do not matter.
        allow: tell of other cameras and go on.
        tell: gets what is worth a line.

    Returns:
        JSON-able; None where there is nothing to compare.

    Raises:
        InputError: a camera is elsewhere, and that was not allowed.
    """
    from sinew import calibrations

    seen, known = cameras_of(observation), () if run is None else calibrations.load(run)
    placed = [c for c in known if c.cameras]
    if not seen or (now is None and not placed):
        return None
    if now is None:
        tell("the policy's data tell where their cameras were: give --calibration, and they are compared")
        return None
    if not placed:
        tell("the policy does not tell where its data's cameras were (collect --calibration keeps it): nothing to compare")
        return {"hash": now.hash, "policy": [], "cameras": {}}
    differences = {name: best for name in seen if (best := _nearest(name, placed, now, len(seen))) is not None}
    for name in [name for name in seen if name not in differences]:
        silent = "--calibration" if now.camera(name, len(seen)) is None else "the policy"
        tell(f"camera {name} is not compared: {silent} does not tell of it")
    other = [f"camera {name} {apart.told}" for name, apart in differences.items() if not apart.same]
    if other:
        line = f"{'; '.join(other)} when the policy's data were recorded"
        if not allow:
            raise InputError(
                f"{line}: put it back, train on data of now, or give --allow-other-calibration (calibration {now.hash}, "
                f"the policy's {', '.join(c.hash for c in placed)})"
            )
        tell(f"{line}; going on as told")
    rows = {name: {"moved_m": a.metres, "moved_rad": a.radians, "chance": a.chance, "same": a.same} for name, a in differences.items()}
    return {"hash": now.hash, "policy": [c.hash for c in placed], "cameras": rows}


def _nearest(name: str, placed: Sequence[Calibration], now: Calibration, cameras: int) -> Apart | None:
    """How far a camera is from the nearest place that the data had it at."""
    from sinew.calibrations import apart

    camera = now.camera(name, cameras)
    were = [was for c in placed if (was := c.camera(name, cameras)) is not None]
    if camera is None or not were:
        return None
    return min((apart(was, camera) for was in were), key=lambda a: (not a.same, a.metres + 0.2 * a.radians))
