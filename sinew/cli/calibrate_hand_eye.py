"""Where a camera is, on the hand or beside the robot, from views of a board that were recorded or that the robot takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinew.cli import calibrate_inputs as inputs
from sinew.cli import calibrate_publish
from sinew.cli.calibrate_inputs import BoardArgs
from sinew.cli.calibrate_robot import RobotArgs
from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from calibration.solve import Result

FEWEST = 10
"""Views that a robot takes at least: with fewer nothing can be held out, and a board of another size would go unnoticed."""


@dataclass(frozen=True, kw_only=True)
class HandEye(BoardArgs, RobotArgs):
    """Where cameras are, from pictures of a board and the robot's poses: recorded ones, or those that a robot takes itself."""

    data: Path | None = None
    """A session of ours, a ROS-Industrial set, camera folders with CSV poses, pose streams, or easy_handeye2 samples."""
    mount: Literal["in_hand", "to_hand"] | None = None
    """On the hand, or beside the robot and looking at the hand; what the data says if left out."""
    camera: tuple[str, ...] = ()
    """Which cameras of the data, by number from 0 on, all if left out; the camera of a robot by name."""
    intrinsics: Path | None = None
    """A camera.json of 'sinew calibrate intrinsics', where the data has none or a worse one."""
    model: Literal["auto", "poses", "scale", "intrinsics", "intrinsics+scale"] = "auto"
    """What is estimated besides poses; auto takes what predicts left-out views best."""
    cad_prior: Path | None = None
    """A calibration.json, or JSON of 16 numbers: where the camera should be by the drawing; used where the views cannot tell."""
    cad_sigma: tuple[float, float] = (0.01, 3.0)
    """How far off the drawing may be: m and degrees."""
    time_offset: bool = False
    """Estimate the offset between the clocks of robot and camera; for streams of poses."""
    joints: bool = False
    """Estimate by how much the zeros of the robot's joints are off too; for views that the robot took itself, 40 or more."""
    tolerance: tuple[float, float] = (0.01, 1.0)
    """A direction known worse than this, m or degrees, is not known: the calibration is refused."""
    out: Path = Path("calibration")
    """Folder for calibration.json and what ROS tools read."""
    names: tuple[str, ...] = ()
    """Names of the cameras."""
    base_frame: str = ""
    """Frame of the robot's base, for the files: base_link, or that of the robot's config if left out."""
    hand_frame: str = ""
    """Frame of its hand: tool0, or the tool of the robot's config if left out; of a robot with a config any link of its hand."""
    camera_frame: str = ""
    """Frame of the camera's optical axes: what its driver calls it, or CAMERA_optical_frame if left out."""
    publish: bool = False
    """Publish the result on /tf_static of the robot's network until Ctrl-C."""
    seed: int = 0
    """Has no effect here; every verb takes it."""
    json: bool = False
    """Print one JSON object."""


def hand_eye(args: HandEye) -> dict[str, Any]:
    """From the data, or from what a robot takes."""
    from dataclasses import replace

    from calibration.routine import Pace
    from sinew.cli import calibrate_robot

    if (args.data is None) == (args.robot is None):
        raise InputError("give either --data, what was recorded, or --robot sim, dds or ros2, which takes the views itself")
    if args.robot is None:
        return _solved(args)
    calibrate_robot.check(args)
    if args.mount is None:
        raise InputError(f"--robot {args.robot} needs --mount in_hand or --mount to_hand: is the camera on the hand, or beside the robot?")
    goal, pace = calibrate_robot.accuracy(args.accuracy), Pace(least=min(FEWEST, args.views_max), most=args.views_max)
    folder, lens = args.session or args.out / "session", inputs.lens(args.intrinsics) if args.intrinsics else None
    taken = calibrate_robot.take(args, inputs.board(args), args.mount, folder, goal, pace, lens)
    base, hand, frame = taken["frames"]
    frames = {"base_frame": args.base_frame or base, "hand_frame": hand, "camera_frame": args.camera_frame or frame}
    result = _solved(replace(args, data=folder, camera=(), names=args.names or args.camera, **frames))
    if args.publish:
        calibrate_publish.publish(args.out, args.robot, args.domain, args.reach)
    return {**result, "taken": taken["taken"], "error": calibrate_robot.error(taken["truth"], args, result["T"])}


def _solved(args: HandEye) -> dict[str, Any]:
    from dataclasses import replace

    import numpy as np

    from calibration.estimator import Priors
    from calibration.foreign import read_session
    from calibration.results import mounted, write
    from calibration.session import find_views
    from calibration.solve import solve, summary
    from sinew.cli.console_progress import ConsoleProgress

    assert args.data is not None  # checked
    session = read_session(args.data)
    mount = args.mount or session.mount
    if mount is None:
        raise InputError(f"{args.data} does not say where the camera is: give --mount in_hand or --mount to_hand")
    if not all(c.isdigit() and int(c) < len(session.cameras) for c in args.camera):
        raise InputError(f"--camera {' '.join(args.camera)}: {args.data} has cameras 0 to {len(session.cameras) - 1}")
    chosen = tuple(map(int, args.camera)) or tuple(range(len(session.cameras)))
    lenses = tuple(inputs.lens(args.intrinsics) if args.intrinsics else session.cameras[c] for c in chosen)
    known = tuple(c for c in lenses if c is not None)
    if len(known) != len(lenses):
        raise InputError(f"{args.data} has no intrinsics: calibrate the lens first, and give its camera.json with --intrinsics")
    shots = tuple(replace(s, camera=chosen.index(s.camera)) for s in session.shots if s.camera in chosen)
    session = replace(session, shots=shots, cameras=known, mount=mount)
    with ConsoleProgress() as progress:
        found = find_views(session, progress=progress)
    priors = Priors()
    if args.cad_prior:
        sigma_m, sigma_deg = args.cad_sigma
        priors = Priors(X=inputs.drawing(args.cad_prior, len(known)), X_sigma_m=sigma_m, X_sigma_rad=float(np.deg2rad(sigma_deg)))
    tolerance_m, tolerance_deg = args.tolerance
    result = solve(
        found.views, known, mount, model=args.model, priors=priors, tolerance_m=tolerance_m, tolerance_rad=float(np.deg2rad(tolerance_deg)),
        time_offset=args.time_offset, joint_offsets=args.joints,
    )  # fmt: skip
    files = write(
        result, args.out, names=args.names, base_frame=args.base_frame or "base_link", hand_frame=args.hand_frame or "tool0",
        camera_frames=(args.camera_frame,) if args.camera_frame else (), board=session.board,
    )  # fmt: skip
    told = summary(result)
    told["rejected"] = {**found.rejected, **result.rejected}
    pictures = {s.name: s.image for s in session.shots if s.image is not None}
    files["report"] = _write_report(args, result, told["rejected"], pictures, priors.X)
    return {
        "action": "handeye",
        "out": str(args.out),
        **told,
        "hash": [m.hash for m in mounted(result)],
        "files": [str(f) for f in files.values()],
    }


def _write_report(args: HandEye, result: Result, rejected: dict[str, str], pictures: dict[str, Path], drawing: Any) -> Path:
    """report.html, for a person to judge."""
    from calibration.report import header, sections
    from sinew.cli.report_style import page, section
    from sinew.rundir import atomic_write

    told = sections(result, rejected, args.names, pictures, drawing)
    parts = [header(result, args.names), *(section(title, html) for title, html in told)]
    atomic_write(args.out / "report.html", page(f"Sinew calibration: {args.out.name}", "\n".join(parts)))
    return args.out / "report.html"


def show(result: dict[str, Any], console: Console) -> None:
    import numpy as np

    from sinew.cli import calibrate_robot

    poses, covariances = np.reshape(result["T"], (-1, 4, 4)), np.reshape(result["covariance"], (-1, 6, 6))
    for c, (pose, covariance) in enumerate(zip(poses, covariances, strict=True)):
        sigma = np.sqrt(np.diag(covariance))
        where = ", ".join(f"{1e3 * v:.2f} ± {1e3 * s:.2f}" for v, s in zip(pose[:3, 3], sigma[3:], strict=True))
        console.print(f"camera {c}: at {where} mm, turned to ± {np.rad2deg(sigma[:3].max()):.3f} degrees")
        seen = result["observability"][c]
        if seen["advice"]:
            console.print(f"  {seen['advice']}; what the views do not tell comes from the drawing")
    predicted = "" if result["held_out_px"] is None else f", left-out views are predicted to {result['held_out_px']:.2f} px"
    noise = result["noise"]
    console.print(
        f"{len(result['used'])} views used{predicted}; estimated besides the poses: {result['model'].replace('poses', 'nothing')}"
    )
    console.print(
        f"noise: corners {noise['pixel']:.2f} px, robot {1e3 * noise['robot_m']:.2f} mm and {np.rad2deg(noise['robot_rad']):.3f} degrees"
    )
    if any(result["joint_offsets_sigma_rad"]):
        told = zip(result["joint_offsets_rad"], result["joint_offsets_sigma_rad"], strict=True)
        degrees = ", ".join(f"{np.rad2deg(o):+.2f} ± {np.rad2deg(s):.2f}" if s else "–" for o, s in told)
        console.print(f"add to the joints, degrees: {degrees} (the first and the last cannot be told)")
    if abs(result["scale"] - 1) > 5e-3:
        percent, direction = 100 * abs(result["scale"] - 1), "larger" if result["scale"] > 1 else "smaller"
        console.print(f"the board is {percent:.1f} % {direction} than told: measure it")
    for line in calibrate_robot.lines(result):
        console.print(line)
    console.print(f"wrote {result['out']}")
