"""Propose a reward: a model that sees says what is grasped, what has to get where, and along which way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinew.cli.reward_eyes import undistorted
from sinew.errors import DataError, InputError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from calibration.results import Mounted
    from rewards.keypoint.asked import AskedKeypoints
    from rewards.keypoint.views import Scene, View
    from rewards.vlm import VLM

RECORDED, ORACLE = "recorded:", "oracle"


@dataclass(frozen=True, kw_only=True)
class Args:
    """Propose a reward: a model that sees says what is grasped, what has to get where, and along which way."""

    out: Path
    """Reward file to write, for sinew improve --reward; pictures as the model saw them go beside it."""
    task: str | None = None
    """Simulated task, whose cameras see depth and objects; without it the scene is in --image."""
    task_text: str = ""
    """What is to be done, one sentence; the task's own if left out."""
    image: Path | None = None
    """Picture of the scene."""
    image2: Path | None = None
    """The same scene from aside."""
    camera: Path | None = None
    """Where the picture's camera is: a calibration.json, or its folder, of sinew calibrate."""
    camera2: Path | None = None
    """Where that of the second picture is."""
    vlm: str = "http://localhost:8000/v1"
    """Address of a server that speaks chat completions (vLLM, Ollama, a cloud); recorded:DIR to replay answers; oracle for the task's
    own truth."""
    model: str = "default"
    """Name of the model on the server."""
    api_key_env: str = "SINEW_VLM_API_KEY"
    """Environment variable that holds the key, where one is needed."""
    record: Path | None = None
    """Folder that keeps the answers, for recorded:DIR."""
    timeout: float = 60.0
    """Seconds for the answer, retries included."""
    weight: float = 1.0
    """What the whole way is worth, where success is worth 1."""
    depth: Literal["auto", "none"] = "auto"
    """none: leave out what only a simulation knows, depth and objects, for points of a task."""
    every_episode: bool = False
    """Have the model asked again at the beginning of every episode, in every world; what it says now stands in where it gives no answer."""
    wait: float = 5.0
    """Seconds that worlds may wait for it as episodes begin, with --every-episode."""
    max_calls: int = 5000
    """Questions that it may be asked then, by each process that acts."""
    follow: bool = False
    """Follow what is moved in the pictures of two cameras, and do not look at poses of objects that a simulation tells."""
    seed: int = 0
    """Of the model's sampling, and of the simulated scene."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Ask once, lift the answer to metres, and write the reward file; one that is success alone where no answer can be had.

    Raises:
        InputError: options do not go together, a picture cannot be read, or --out is there already.
    """
    from dataclasses import replace

    from rewards.files import RewardUnavailable, SparseSettings, save
    from rewards.keypoint.settings import TOOL

    if args.out.exists():
        raise InputError(f"{args.out} is there already; choose another --out")
    if args.follow and args.task is None:
        raise InputError("--follow follows objects of simulated worlds: give --task")
    asked = _every_episode(args) if args.every_episode else None
    text, scene, views = _looked(args)
    made = {"task": args.task, "task_text": text, "vlm": args.vlm, "model": args.model, "seed": args.seed}
    try:
        proposal = _asked(args, text, scene, views)
    except RewardUnavailable as problem:
        if asked is not None:
            save(args.out, "keypoint-asked", asked, made | {"because": str(problem)})
            return {"out": str(args.out), "reward": "keypoint-asked", "because": str(problem)}
        save(args.out, "sparse", SparseSettings(because=str(problem)), made)
        return {"out": str(args.out), "reward": "sparse", "because": str(problem)}
    pictures = _pictures(args.out, proposal.pictures)
    points = {name: point.round(4).tolist() for name, point in proposal.points_m.items()}
    stands_in = bool(proposal.answer.marks["function"]) and proposal.settings.function.object == TOOL
    reply = proposal.reply
    made |= {"answer": reply.json, "usage": dict(reply.usage), "latency_s": round(reply.latency_s, 3), "points_m": points}
    settings = proposal.settings if asked is None else replace(asked, proposed=proposal.settings)
    kind = "keypoint" if asked is None else "keypoint-asked"
    save(args.out, kind, settings, {**made, "pictures": [p.name for p in pictures]})
    return {
        "out": str(args.out), "reward": kind, "answer": reply.json, "points_m": points, "calls": 1,
        "latency_s": round(reply.latency_s, 3), "usage": dict(reply.usage), "pictures": [str(p) for p in pictures],
        "tool_stands_in": stands_in,
    }  # fmt: skip


def _every_episode(args: Args) -> AskedKeypoints:
    """Whom to ask at the beginning of every episode.

    Raises:
        InputError: what learning cannot ask about.
    """
    from rewards.keypoint.asked import AskedKeypoints

    if args.task is None:
        raise InputError("--every-episode asks about simulated worlds: give --task")
    if args.vlm.startswith(RECORDED):
        raise InputError("--every-episode asks about scenes that nobody has recorded yet: give the address of a model, or oracle")
    told: dict[str, Any] = {"record": args.record.name if args.record else "", "task_text": args.task_text, "follow": args.follow}
    if args.record and args.record.absolute().parent != args.out.absolute().parent:
        raise InputError(f"--record {args.record}: with --every-episode answers are kept beside --out: give a folder there")
    return AskedKeypoints(
        base_url=args.vlm, model=args.model, api_key_env=args.api_key_env, wait_s=args.wait, timeout_s=args.timeout,
        max_calls=args.max_calls, weight=args.weight, seed=args.seed, **told,
    )  # fmt: skip


def _looked(args: Args) -> tuple[str, Scene | None, tuple[View, View | None]]:
    """What is to be done, the simulated scene, and the views."""
    from dataclasses import replace

    if args.task is None:
        if args.image is None:
            raise InputError("give --image, a picture of the scene, or --task, a simulated one")
        if not args.task_text.strip():
            raise InputError("give --task-text, what is to be done in the picture")
        if args.vlm == ORACLE:
            raise InputError("--vlm oracle knows simulated tasks alone: give --task, or the address of a model")
        second = None if args.image2 is None else _read_view(args.image2, args.camera2)
        return args.task_text, None, (_read_view(args.image, args.camera), second)
    if args.image or args.image2 or args.camera or args.camera2:
        raise InputError("--task draws its own pictures: leave out --image and --camera")
    import sim
    from sinew.cli.reward_scene import open_scene
    from sinew.cli.scenes import first_scene

    interface = sim.make_interface(args.task)
    scene = open_scene(interface, first_scene("practice", args.seed), oracle=args.vlm == ORACLE)
    views = scene.view, scene.second
    if args.depth == "none":
        views = replace(scene.view, depth_m=None, masks={}), replace(scene.second, depth_m=None, masks={}) if scene.second else None
    return args.task_text or interface.task_text, scene, views


def _asked(args: Args, text: str, scene: Scene | None, views: tuple[View, View | None]) -> Any:
    from dataclasses import replace

    from rewards.keypoint.propose import propose

    poses = {} if scene is None else scene.poses
    proposal = propose(_vlm(args, scene), text, *views, poses=poses, seed=args.seed, timeout_s=args.timeout)
    return replace(proposal, settings=replace(proposal.settings, weight=args.weight, follow=args.follow and args.task is not None))


def _vlm(args: Args, scene: Scene | None) -> VLM:
    """Who answers."""
    from rewards.vlm import OpenAICompatible, RecordedVLM, SimOracleVLM

    if args.vlm.startswith(RECORDED):
        return RecordedVLM(Path(args.vlm.removeprefix(RECORDED)))
    inner: VLM
    if args.vlm == ORACLE:
        assert scene is not None and scene.truth is not None
        inner = SimOracleVLM(scene.truth)
    else:
        inner = OpenAICompatible(args.vlm, args.model, args.api_key_env)
    return inner if args.record is None else RecordedVLM(args.record, inner)


def _read_view(path: Path, calibration: Path | None) -> View:
    """A picture, with its camera's calibration where one is given; the lens is taken out of it."""
    import cv2
    import numpy as np

    from rewards.files import CameraView
    from rewards.keypoint.views import View

    if not path.is_file():
        raise InputError(f"{path} is no picture")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path} cannot be read as a picture: give PNG or JPEG")
    picture: np.ndarray = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if calibration is None:
        return View(image=picture)
    camera = _read_camera(calibration, picture)
    lens = camera.camera
    picture = undistorted(picture, lens)
    return View(
        image=picture, camera=CameraView(matrix=lens.matrix, T_world_camera=np.asarray(camera.T), width=lens.width, height=lens.height)
    )


def _read_camera(path: Path, picture: np.ndarray) -> Mounted:
    """The calibration of a camera that stands still, for pictures of its size.

    Raises:
        InputError: it is on the hand, or of pictures of another size.
    """
    from calibration.results import read

    camera = read(path)[0]
    if camera.mount != "to_hand":
        raise InputError(f"{path} is of a camera on the hand: a picture's place is known for one that stands beside the robot")
    size = (picture.shape[1], picture.shape[0])
    if (camera.camera.width, camera.camera.height) != size:
        raise InputError(f"{path} is of pictures of {camera.camera.width} x {camera.camera.height}, and this one has {size[0]} x {size[1]}")
    return camera


def _pictures(out: Path, pictures: Any) -> list[Path]:
    """Pictures as the model saw them, beside the reward file."""
    import cv2

    from sinew.rundir import atomic_write

    written = []
    for i, picture in enumerate(pictures):
        path = out.with_name(f"{out.stem}-view{i + 1}.png")
        _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        atomic_write(path, data.tobytes())
        written.append(path)
    return written


def show(result: dict[str, Any], console: Console) -> None:
    """What was proposed, and what to do with it."""
    if result["reward"] == "sparse":
        console.print(f"{result['because']}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(f"{result['out']}: success alone is rewarded", highlight=False, soft_wrap=True)
        return
    if "because" in result:
        console.print(f"{result['because']}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"{result['out']}: it is asked at every episode's beginning; where it does not answer, success alone is rewarded",
            soft_wrap=True,
        )
        return
    if result["tool_stands_in"]:
        console.print(
            "nothing tells where the objects of a picture are later on: the tool stands for what it holds; set the scene up as pictured",
            style="yellow",
            soft_wrap=True,
        )
    points = result["points_m"]
    for name in ("grasp", "function", "target"):
        if name in points:
            console.print(f"{name}: {', '.join(f'{1000 * v:.0f}' for v in points[name])} mm", highlight=False)
    for name in ("approach", "path"):
        way = " → ".join("(" + ", ".join(f"{1000 * v:.0f}" for v in point) + ")" for point in points[name])
        console.print(f"{name}: {way or 'none'}", highlight=False)
    console.print(
        f"{result['out']}; as it was seen: {', '.join(result['pictures'])}; try it: sinew improve RUN --reward {result['out']}",
        highlight=False,
        soft_wrap=True,
    )
