"""Calibrate cameras: a board to print, the lens, where the camera is on the hand or beside the robot, whether that is still true."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sinew.cli import calibrate_leader, calibrate_markerless, calibrate_publish, calibrate_watch
from sinew.cli.calibrate_leader import LeaderArgs
from sinew.cli.calibrate_markerless import MarkerlessArgs
from sinew.cli.calibrate_publish import PublishArgs
from sinew.cli.calibrate_robot import NetworkArgs, RobotArgs
from sinew.cli.calibrate_watch import WatchArgs
from sinew.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from calibration.boards import Board as BoardSpec
    from calibration.camera import Camera
    from calibration.solve import Result

FEWEST = 10
"""Views that a robot takes at least: with fewer nothing can be held out, and a board of another size would go unnoticed."""
NOT_TRUE = 2
"""Exit code of `check` for a calibration that is not true any more."""


@dataclass(frozen=True, kw_only=True)
class BoardArgs:
    """What is printed; a session's own board.json is used where this is left alone."""

    kind: Literal["charuco", "apriltag", "checkerboard", "circles"] = "charuco"
    """ChArUco boards may be seen in part and tell which way round they are: take one unless there is a reason not to."""
    columns: int = 8
    """Squares, tags or circles in a row."""
    rows: int = 6
    """Rows of them."""
    square: float = 0.03
    """Side of a square, or distance of tags or circles, m."""
    marker: float = 0.022
    """Side of the markers or tags, or diameter of the circles, m."""
    dictionary: str = ""
    """OpenCV's dictionary of markers, for example DICT_5X5_250; the usual one of the kind if left out."""


@dataclass(frozen=True, kw_only=True)
class Sheet(BoardArgs):
    """Write a PDF of a board at true size, with a ruler to check the print."""

    out: Path = Path("board.pdf")
    """File to write."""
    paper: str = "a4"
    """a4, a3, a2 or letter."""
    seed: int = 0
    """Has no effect here; every verb takes it."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True)
class Intrinsics(BoardArgs, NetworkArgs):
    """The lens from pictures of a board: recorded ones, or those of a camera before which a person moves it."""

    images: Path | None = None
    """Folder of pictures, or a calibration session."""
    robot: Literal["dds", "ros2"] | None = None
    """Take the pictures from a camera of the network, telling the person who moves the board what is missing."""
    camera: str = ""
    """That camera: its name in the robot's contract, or the topic of its pictures."""
    idle: float = 60.0
    """Seconds without a new picture after which it goes on with those that there are."""
    model: Literal["auto", "pinhole", "rational", "fisheye"] = "auto"
    """Lens model; auto takes the one that predicts left-out pictures best."""
    out: Path = Path("camera")
    """Folder for camera.json and camera_info.yaml."""
    seed: int = 0
    """Has no effect here; every verb takes it."""
    json: bool = False
    """Print one JSON object."""


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


@dataclass(frozen=True, kw_only=True)
class Check(BoardArgs, RobotArgs):
    """Is a calibration still true, and was it ever believable: by new views, recorded ones or those that a robot takes itself."""

    result: Annotated[Path, tyro.conf.Positional]
    """A calibration.json, or its folder."""
    data: Path | None = None
    """New views, of any kind that 'handeye' reads."""
    camera: tuple[str, ...] = ()
    """Which camera of the calibration, by number or name; the first if left out."""
    hand_frame: str = ""
    """Frame of the hand that the calibration is told in, where that is not the tool of the robot's config."""
    seed: int = 0
    """Has no effect here; every verb takes it."""
    json: bool = False
    """Print one JSON object."""


Args = (
    Annotated[Sheet, tyro.conf.subcommand("board")]
    | Annotated[Intrinsics, tyro.conf.subcommand("intrinsics")]
    | Annotated[HandEye, tyro.conf.subcommand("handeye")]
    | Annotated[MarkerlessArgs, tyro.conf.subcommand("markerless")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[WatchArgs, tyro.conf.subcommand("watch")]
    | Annotated[PublishArgs, tyro.conf.subcommand("publish")]
    | Annotated[LeaderArgs, tyro.conf.subcommand("leader")]
)


def run(args: Sheet | Intrinsics | HandEye | MarkerlessArgs | Check | WatchArgs | PublishArgs | LeaderArgs) -> dict[str, Any]:
    """Do what the subcommand says."""
    if isinstance(args, LeaderArgs):
        return calibrate_leader.run(args)
    if isinstance(args, PublishArgs):
        return calibrate_publish.run(args)
    if isinstance(args, WatchArgs):
        return calibrate_watch.run(args)
    if isinstance(args, MarkerlessArgs):
        return calibrate_markerless.run(args)
    if isinstance(args, Sheet):
        return _sheet(args)
    if isinstance(args, Intrinsics):
        return _intrinsics(args)
    return _hand_eye(args) if isinstance(args, HandEye) else _check(args)


def exit_code(result: dict[str, Any]) -> int:
    """0, or 2 for a calibration that is not true any more."""
    return NOT_TRUE if result.get("holds") is False else 0


def _board(args: BoardArgs) -> BoardSpec:
    from calibration.boards import Board

    return Board(
        kind=args.kind, columns=args.columns, rows=args.rows, square_m=args.square, marker_m=args.marker, dictionary=args.dictionary
    )


def _sheet(args: Sheet) -> dict[str, Any]:
    from calibration.sheet import write_sheet
    from sinew.config import to_json

    board = _board(args)
    told = write_sheet(board, args.out, args.paper)
    return {"action": "board", "out": str(args.out), "board": to_json(board), **told}


def _intrinsics(args: Intrinsics) -> dict[str, Any]:
    import json

    import numpy as np
    import yaml

    from calibration.intrinsics import calibrate_intrinsics
    from calibration.results import camera_info
    from calibration.session import Session, Shot, find_views, read_own
    from sinew.cli import calibrate_lens
    from sinew.cli.console_progress import ConsoleProgress
    from sinew.config import to_json

    if (args.images is None) == (args.robot is None):
        raise InputError("give either --images, a folder of pictures, or --robot dds or ros2 with --camera, which takes them")
    images = args.images or args.out / "images"
    if args.robot is not None:
        calibrate_lens.take(args, _board(args), images)
    if not images.is_dir():
        raise InputError(f"{images} is no folder of pictures")
    if (images / "poses.jsonl").exists():
        session = read_own(images)
    else:
        pictures = sorted(p for p in images.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))
        shots = tuple(Shot(T_base_hand=np.eye(4), image=p, name=p.name) for p in pictures)
        session = Session(shots=shots, cameras=(None,), board=_board(args), mount=None, path=images)
    with ConsoleProgress() as progress:
        found = find_views(session, progress=progress)
    lens = calibrate_intrinsics(found.views, found.sizes[0], args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "camera.json").write_text(json.dumps(to_json(lens.camera), indent=1))
    (args.out / "camera_info.yaml").write_text(yaml.safe_dump(camera_info(lens.camera, args.out.name), sort_keys=False))
    return {
        "action": "intrinsics", "out": str(args.out), **to_json(lens), "rejected": {**found.rejected, **lens.rejected},
    }  # fmt: skip


def _hand_eye(args: HandEye) -> dict[str, Any]:
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
    folder, lens = args.session or args.out / "session", _lens(args.intrinsics) if args.intrinsics else None
    taken = calibrate_robot.take(args, _board(args), args.mount, folder, goal, pace, lens)
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
    lenses = tuple(_lens(args.intrinsics) if args.intrinsics else session.cameras[c] for c in chosen)
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
        priors = Priors(X=_drawing(args.cad_prior, len(known)), X_sigma_m=sigma_m, X_sigma_rad=float(np.deg2rad(sigma_deg)))
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


def _check(args: Check) -> dict[str, Any]:
    from dataclasses import replace

    from calibration.check import check
    from calibration.foreign import read_session
    from calibration.results import read, read_board
    from calibration.session import find_views
    from sinew.cli import calibrate_robot
    from sinew.cli.console_progress import ConsoleProgress
    from sinew.config import to_json

    if (args.data is None) == (args.robot is None):
        raise InputError("give either --data, new views, or --robot sim, dds or ros2, which takes them itself")
    cameras = read(args.result)
    chosen = _chosen(args, [m.name for m in cameras])
    stored, data = cameras[chosen], args.data
    if data is None:
        board = read_board(args.result) or _board(args)
        data = calibrate_robot.check_views(replace(args, camera=(stored.name,)), stored, board)
    session = read_session(data)
    number = chosen if len(session.cameras) > 1 else 0
    shots = tuple(replace(s, camera=0) for s in session.shots if s.camera == number)
    session = replace(session, shots=shots, cameras=(stored.camera,), mount=stored.mount)
    with ConsoleProgress() as progress:
        found = find_views(session, progress=progress)
    return {"action": "check", **to_json(check(stored, found.views)), "rejected": found.rejected}


def _chosen(args: Check, names: list[str]) -> int:
    """Number of the camera that is meant."""
    given = args.camera[0] if len(args.camera) == 1 else "0"
    if len(args.camera) > 1 or not (given in names or (given.isdigit() and int(given) < len(names))):
        raise InputError(f"--camera {' '.join(args.camera)}: {args.result} has {', '.join(f'{i} ({n})' for i, n in enumerate(names))}")
    return names.index(given) if given in names else int(given)


def _lens(path: Path) -> Camera:
    import json

    from calibration.camera import Camera as Lens
    from sinew.config import from_json
    from sinew.errors import DataError

    try:
        return from_json(Lens, json.loads((path / "camera.json" if path.is_dir() else path).read_text()), str(path))
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise DataError(f"{path} is no camera: {e}") from None


def _drawing(path: Path, cameras: int) -> Any:
    import json

    import numpy as np

    from calibration.results import read
    from sinew.errors import DataError

    try:
        content = json.loads((path / "calibration.json" if path.is_dir() else path).read_text())
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise DataError(f"{path} is no JSON: {e}") from None
    if isinstance(content, dict):
        poses = np.array([m.T for m in read(path)])
    else:
        poses = np.asarray(content, dtype=float)
        poses = poses.reshape(-1, 4, 4) if poses.size and poses.size % 16 == 0 else poses
    if poses.shape != (cameras, 4, 4) or not np.isfinite(poses).all():
        raise InputError(f"{path} does not hold {cameras} pose{'s' * (cameras > 1)} of 16 numbers")
    return poses


def show(result: dict[str, Any], console: Console) -> None:
    """The result for a person."""
    if result["action"] == "watch":
        calibrate_watch.show(result, console)
        return
    if result["action"] == "publish":
        calibrate_publish.show(result, console)
        return
    if result["action"] == "markerless":
        calibrate_markerless.show(result, console)
        return
    if result["action"] == "leader":
        console.print("\n".join(calibrate_leader.lines(result)), markup=False)
        return
    if result["action"] == "board":
        console.print(f"wrote {result['out']}: print it at 100 %, then the ruler must be {result['ruler_mm']:.0f} mm long")
        console.print(
            f"the board is {result['width_mm']:.1f} x {result['height_mm']:.1f} mm; give its true size with --square where it is not"
        )
        return
    for name, why in result["rejected"].items():
        console.print(f"left out {name}: {why}", style="yellow")
    if result["action"] == "check":
        console.print(result["told"])
        console.print(f"corners are {result['px']:.2f} px from where it puts them; {result['px_new']:.2f} px with what the new views say")
        return
    if result["action"] == "intrinsics":
        camera = result["camera"]
        fx, fy = camera["focal"]
        console.print(
            f"{camera['model']} lens, focal lengths {fx:.1f} and {fy:.1f} px, centre {camera['centre'][0]:.1f}, {camera['centre'][1]:.1f}"
        )
        console.print(
            f"left-out pictures are predicted to {result['held_out_px']:.2f} px; corners were seen in {100 * result['covered']:.0f} % of it"
        )
        if result["advice"]:
            console.print(f"to make it better: {result['advice']}")
        return
    _show_hand_eye(result, console)


def _show_hand_eye(result: dict[str, Any], console: Console) -> None:
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
