"""Where a camera beside the robot is, from pictures of the robot itself: `sinew calibrate markerless`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from rich.console import Console

    from calibration.body import Body
    from calibration.body_result import BodyResult
    from calibration.camera import Camera
    from calibration.markerless_session import Record, Recording


@dataclass(frozen=True, kw_only=True)
class MarkerlessArgs:
    """Where a camera beside the robot is, from masks of the robot and its joint positions; no board is needed."""

    data: Path
    """A recording: images/, masks/, session.json with cameras and the joints' names, poses.jsonl with joint positions."""
    robot_config: str
    """The robot's shape: MJCF or URDF file with its meshes, or a simulated task for its arm."""
    base: str = ""
    """Body of the model whose frame is the base's; the robot's first body if left out, "world" for the world's."""
    camera: int = 0
    """Which camera of the recording, from 0 on."""
    intrinsics: Path | None = None
    """A camera.json of 'sinew calibrate intrinsics', where the recording has none or a worse one."""
    empty: Path | None = None
    """A picture without the robot: masks are what differs from it, instead of those in masks/."""
    colour: tuple[float, ...] = ()
    """Colours of the robot, 0 to 255, three numbers each: masks are what has one of them, instead of those in masks/."""
    colour_tolerance: float = 18.0
    """How far from these a pixel's colour may be (CIE Lab)."""
    keypoints: bool = False
    """Use the points that poses.jsonl tells instead of masks; keypoints.json says where they are on the body."""
    cad_prior: Path | None = None
    """A calibration.json, or JSON of 16 numbers: where the camera roughly is; the search begins there."""
    cad_sigma: tuple[float, float] = (0.05, 10.0)
    """How far off that may be: m and degrees."""
    tolerance: tuple[float, float] = (0.01, 1.0)
    """A direction known worse than this, m or degrees, is not known: the calibration is refused."""
    out: Path = Path("calibration")
    """Folder for calibration.json, the report and what ROS tools read."""
    name: str = ""
    """Name of the camera."""
    base_frame: str = "base_link"
    """Frame of the robot's base, for the files."""
    seed: int = 0
    """Of the search for the first guess."""
    json: bool = False
    """Print one JSON object."""


def run(args: MarkerlessArgs) -> dict[str, Any]:
    """Calibrate, and write what the other calibrations write.

    Raises:
        InputError: what is wrong with the recording, the robot or the options.
        UnobservableError: the pictures do not tell.
    """
    import numpy as np

    from calibration.body_result import Limits, mounted, summary
    from calibration.keypoints import solve_keypoints
    from calibration.markerless import solve_markerless
    from calibration.markerless_session import looks_of, points_of, read_recording
    from calibration.results import write_mounted
    from calibration.silhouettes import Prior
    from robot_bridge.body import body_of
    from sinew.cli.calibrate_inputs import drawing
    from sinew.cli.console_progress import ConsoleProgress

    recording = read_recording(args.data)
    camera = _camera(args, recording)
    if not recording.records:
        raise DataError(f"{args.data} has no usable line in poses.jsonl: {next(iter(recording.skipped.values()), 'it is empty')}")
    body = body_of(args.robot_config, recording.joints, args.base)
    prior = None
    if args.cad_prior:
        sigma_m, sigma_deg = args.cad_sigma
        prior = Prior(T=drawing(args.cad_prior, 1)[0], sigma_m=sigma_m, sigma_rad=float(np.deg2rad(sigma_deg)))
    tolerance_m, tolerance_deg = args.tolerance
    limits = Limits(tolerance_m=tolerance_m, tolerance_rad=float(np.deg2rad(tolerance_deg)))
    with ConsoleProgress() as progress:
        if args.keypoints:
            views, joints, rejected = points_of(recording, args.camera, body)
            result: BodyResult = solve_keypoints(views, camera, joints, body.joints, prior=prior, limits=limits, seed=args.seed)
        else:
            looks, rejected = looks_of(recording, args.camera, _masks(args), progress)
            result = solve_markerless(body, looks, camera, prior=prior, limits=limits, seed=args.seed, progress=progress)
    told = summary(result)
    told["rejected"] = {**rejected, **result.rejected}
    camera_of = mounted(result, args.name)
    files = write_mounted([camera_of], told, args.out, base_frame=args.base_frame)
    files["report"] = _report(args, recording, result, body, told["rejected"])
    body.close()
    return {
        "action": "markerless", "out": str(args.out), **told, "hash": [camera_of.hash], "files": [str(f) for f in files.values()],
    }  # fmt: skip


def _camera(args: MarkerlessArgs, recording: Recording) -> Camera:
    from sinew.cli.calibrate_inputs import lens

    if not 0 <= args.camera < len(recording.cameras):
        raise InputError(f"--camera {args.camera}: {args.data} has cameras 0 to {len(recording.cameras) - 1}")
    camera = lens(args.intrinsics) if args.intrinsics else recording.cameras[args.camera]
    if camera is None:
        raise InputError(f"{args.data} has no intrinsics: calibrate the lens first, and give its camera.json with --intrinsics")
    return camera


def _masks(args: MarkerlessArgs) -> Callable[[Record], np.ndarray] | None:
    """How masks are made, None for those that lie there."""
    from calibration.markerless_session import picture_of
    from calibration.masks import of_colours, read_picture, subtract

    if args.empty is not None and args.colour:
        raise InputError("--empty and --colour both make masks: give one")
    if args.colour:
        if len(args.colour) % 3 or not all(0 <= v <= 255 for v in args.colour):
            raise InputError(f"--colour {' '.join(f'{v:g}' for v in args.colour)}: give three numbers of 0 to 255 for each colour")
        colours = [args.colour[i : i + 3] for i in range(0, len(args.colour), 3)]
        return lambda record: of_colours(picture_of(record), colours, args.colour_tolerance)
    if args.empty is not None:
        empty = read_picture(args.empty)
        return lambda record: subtract(picture_of(record), empty)
    return None


def _report(args: MarkerlessArgs, recording: Recording, result: BodyResult, body: Body, rejected: dict[str, str]) -> Path:
    """report.html, for a person to judge."""
    from calibration.markerless_report import header, sections
    from sinew.cli.report_style import page, section
    from sinew.rundir import atomic_write

    pictures = {r.name: r.image for r in recording.records}
    name = args.name or "camera0"
    parts = [header(result, name), *(section(title, html) for title, html in sections(result, body, pictures, rejected, name))]
    atomic_write(args.out / "report.html", page(f"Sinew calibration: {args.out.name}", "\n".join(parts)))
    return args.out / "report.html"


def show(result: dict[str, Any], console: Console) -> None:
    """The result for a person."""
    import numpy as np

    for name, why in result["rejected"].items():
        console.print(f"left out {name}: {why}", style="yellow")
    pose, sigma = np.array(result["T"]), np.sqrt(np.diag(np.array(result["covariance"])))
    where = ", ".join(f"{1e3 * v:.1f} ± {1e3 * s:.1f}" for v, s in zip(pose[:3, 3], pose_sigma(pose, result["covariance"]), strict=True))
    console.print(f"camera: at {where} mm in the base's frame, turned to ± {np.rad2deg(sigma[:3].max()):.2f} degrees")
    advice = result["observability"][0]["advice"]
    if advice:
        console.print(f"  {advice}; what the views do not tell comes from the prior")
    predicted = "" if result["held_out_px"] is None else f", left-out views are predicted to {result['held_out_px']:.2f} px"
    console.print(f"{len(result['used'])} views used{predicted}")
    noise = result["noise"]
    size = f"; masks are {result['bleed_px']:+.2f} px too large" if "bleed_px" in result else ""
    console.print(f"noise: {result['model']} {noise['pixel']:.2f} px, joints {np.rad2deg(noise['joint_rad']):.3f} degrees{size}")
    console.print(f"wrote {result['out']}")


def pose_sigma(pose: np.ndarray, covariance: Any) -> np.ndarray:
    """Standard deviations (3,) of the camera's place along the base's axes."""
    import numpy as np

    turned = pose[:3, :3] @ np.array(covariance)[3:, 3:] @ pose[:3, :3].T
    return np.sqrt(np.diag(turned))
