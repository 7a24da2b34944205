"""What a reward looks at on a robot, and whether the robot tells it: found out before anything moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.errors import InputError, unknown
from sinew.specs import ENVIRONMENT_STATE, ObservationSpec

if TYPE_CHECKING:
    from calibration.results import Mounted
    from rewards.files import Situation
    from robot_bridge.attended import AttendedRobot
    from sim import TaskInterface
    from sinew.cli.improve import Args
    from sinew.cli.reward_eyes import Eye

SIZE = (480, 480)
"""Height and width of simulated pictures that a reward looks at; square, as those of policies are."""
IMAGES, POSE = "images.", "pose."
"""How a robot's names of pictures and poses begin."""
TELLS = (
    "a robot tells its own state, the pictures that the policy looks at or that --calibration NAME=PATH tells of, and poses of objects "
    "that something publishes on /tf"
)
Say = Callable[[str], None]


@dataclass
class Shown:
    """The pictures of one time."""

    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Camera → (H, W, 3) uint8."""

    def of(self, obs: Any, camera: str, world: int) -> np.ndarray:
        """See `sinew.cli.reward_eyes.Picture`."""
        return self.take(camera, world)

    def take(self, camera: str, world: int) -> np.ndarray:
        """See `rewards.files.Situation.pictures`."""
        from rewards.files import RewardUnavailable

        if camera not in self.pictures:
            raise RewardUnavailable(f"camera {camera!r} is not one of {', '.join(self.pictures) or 'no cameras'}")
        return self.pictures[camera]


@dataclass(frozen=True)
class Needs:
    """What a reward needs of a robot."""

    observation: ObservationSpec
    """What it is told."""
    pictures: tuple[str, ...]
    """Cameras that it looks through."""
    calibrated: tuple[Mounted, ...]
    """Cameras of `--calibration`."""

    def situation(
        self, args: Args, interface: TaskInterface, gamma: float, shown: Shown, say: Say, log: Callable[[Mapping[str, Any]], None]
    ) -> Situation:
        """What the reward may know of the robot, whose pictures are shown."""
        from rewards.files import Situation
        from sinew.cli.reward_eyes import Eyes

        objects = tuple(interface.objects) if ENVIRONMENT_STATE in self.observation else ()
        sizes = {name: picture.shape[:2] for name, picture in shown.pictures.items()}
        eyes = Eyes(self.observation, _eyes(args, interface, self.calibrated, sizes), objects, shown.of)
        # an episode's last pictures are its own here, so that none is too late to be looked at
        return Situation(
            observation=self.observation, action=interface.action_spec, gamma=gamma, num_envs=1, objects=objects,
            max_episode_steps=10 * interface.max_episode_steps, task_text=interface.task_text, pictures=shown.take if sizes else None,
            say=say, log=log, folder=Path(args.reward).parent, patient=True, **eyes.told(),
        )  # fmt: skip


def asked(args: Args, interface: TaskInterface, policy: Sequence[str], demos: Path | None, say: Say) -> tuple[Args, Needs | None]:
    """`args`, and what its reward needs of a robot; success alone and None where that is all there is. Nothing is connected for it.

    Args:
        args: of `sinew improve`.
        interface: task.
        policy: keys that the policy looks at.
        demos: recorded episodes that are rewarded as well.
        say: tells the user.

    Raises:
        InputError: no such reward; or no robot tells what it looks at, with what would.
    """
    if args.reward == "sparse":
        return args, None
    from calibration.results import read_named
    from rewards import files

    found = tuple(read_named(args.calibration))
    seen = interface.observation_spec
    if args.reward == "shaped":
        return args, Needs(seen, (), found)
    settings = _settings(args)
    if isinstance(settings, files.SparseSettings):
        say(f"--reward {args.reward}: {settings.because or 'the file holds success alone'}; success alone is rewarded in this run")
        return replace(args, reward="sparse"), None
    pictures = _cameras(args, interface, settings, found)
    # poses of objects are asked for only where it cannot do without
    for keys in (policy, (*policy, ENVIRONMENT_STATE)):
        needs = Needs(ObservationSpec({k: seen[k] for k in seen if k in keys}), pictures, found)
        problem = _problem(args, needs, interface)
        if problem is None:
            break
    else:
        raise InputError(f"--reward {args.reward} cannot be told on this robot: {problem}; {TELLS}")
    if demos is not None:
        _check_data(args, interface, demos)
    return args, needs


def _settings(args: Args) -> Any:
    """Of the reward file; of what it guards, where that is a guard.

    Raises:
        InputError: there is none, or it asks the oracle.
    """
    from rewards import files
    from rewards.guard import GuardedSettings
    from rewards.keypoint.asked import ORACLE, AskedKeypoints

    path = Path(args.reward)
    if not path.is_file():
        raise InputError(f"--reward {path}: give sparse, shaped, or a reward file; there is none of that name")
    settings: Any = files.load(path)[1]
    if isinstance(settings, GuardedSettings):
        settings = files.load(path.parent / settings.inside)[1]
    if isinstance(settings, AskedKeypoints) and settings.base_url == ORACLE:
        raise InputError(f"--reward {path} asks the oracle, which knows simulated worlds alone: propose one with --vlm http://...")
    return settings


def _cameras(args: Args, interface: TaskInterface, settings: Any, found: Sequence[Mounted]) -> tuple[str, ...]:
    """Cameras that the robot has to send pictures of.

    Raises:
        InputError: the robot in this process has no such camera; or nobody says where cameras are, and that has to be known.
    """
    from rewards.keypoint.asked import AskedKeypoints
    from sinew.cli.reward_situation import still

    named: list[str] = [settings.camera] if isinstance(getattr(settings, "camera", None), str) else []
    places = isinstance(settings, AskedKeypoints) or getattr(settings, "follow", False)
    calibrated = [m.name for m in found if m.mount == "to_hand"] or (still(interface) if args.robot == "sim" else [])
    wanted: list[str] = [*named, *(calibrated if places else [])]
    cameras = tuple(dict.fromkeys(wanted))
    if isinstance(settings, AskedKeypoints) and not cameras:
        raise InputError(f"--reward {args.reward} asks about pictures of cameras whose place is known: give --calibration NAME=PATH")
    if args.robot == "sim":
        model = interface.scene.model
        known = [model.camera(i).name for i in range(model.ncam)]
        for camera in cameras:
            if camera not in known:
                raise unknown("camera", camera, known)
    return cameras


def _eyes(args: Args, interface: TaskInterface, found: Sequence[Mounted], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Eye]:
    """Cameras whose place is known: by calibration, or, in this process and without one, by the simulation's model."""
    from sinew.cli.reward_eyes import Eye, calibrated
    from sinew.cli.reward_situation import standing

    if found or args.robot != "sim":
        return calibrated(found, sizes)
    return {name: Eye(view) for name, view in standing(interface, sizes).items()}


def _problem(args: Args, needs: Needs, interface: TaskInterface) -> str | None:
    """Why a reward cannot be told from these observations, with pictures of the cameras that it needs."""
    from rewards import files

    sizes = {m.name: (m.camera.height, m.camera.width) for m in needs.calibrated}
    shown = Shown({name: np.zeros((*sizes.get(name, SIZE), 3), np.uint8) for name in needs.pictures})
    place = needs.situation(args, interface, 0.99, shown, lambda text: None, lambda values: None)
    _, settings = files.load(Path(args.reward))
    try:
        reward: Any = settings.build(place)
    except files.RewardUnavailable as problem:
        return str(problem)
    getattr(reward, "close", lambda: None)()
    return None


def _check_data(args: Args, interface: TaskInterface, demos: Path) -> None:
    """Refuse a reward that recorded episodes, which are learned from beside the robot's, cannot be given."""
    from demos import Dataset
    from rewards import files
    from sinew.cli.reward_situation import of_data

    _, settings = files.load(Path(args.reward))
    try:
        reward: Any = settings.build(replace(of_data(Dataset(demos), interface, 0.99, 1), folder=Path(args.reward).parent))
    except files.RewardUnavailable as problem:
        raise InputError(
            f"--reward {args.reward} cannot be told of {demos}, whose episodes are learned from beside the robot's: {problem}; "
            "give --demos with what it looks at"
        ) from None
    getattr(reward, "close", lambda: None)()


def check_sent(args: Args, needs: Needs, arm: AttendedRobot) -> Shown:
    """Wait until the robot sends all that its reward looks at, and give the pictures of then.

    Raises:
        InputError: something does not come, or a camera's pictures are not as it was calibrated.
    """
    from sinew.cli.reward_eyes import calibrated

    objects = arm.interface.objects if ENVIRONMENT_STATE in needs.observation else ()
    wanted = [POSE + name for name in objects] + [IMAGES + name for name in needs.pictures]
    timeout_s, begun_ns, name = arm.config.connect_timeout_s, arm.clock.now_ns(), arm.robot.spec.name
    while missing := [key for key in wanted if key not in arm.robot.read().values]:
        if arm.clock.now_ns() - begun_ns > timeout_s * 1e9:
            sent = ", ".join(arm.robot.read().values)
            raise InputError(
                f"--reward {args.reward} looks at {', '.join(missing)}, which robot {name} did not send within {timeout_s:g} s; it sends "
                f"{sent}: publish it, or choose a reward that looks at something else"
            )
        arm.clock.wait_until(arm.clock.now_ns() + arm.period_ns // 4)
    shown = pictures_of(arm, needs.pictures)
    sizes = {camera: picture.shape[:2] for camera, picture in shown.items()}
    used = [m for m in needs.calibrated if m.name in sizes and m.mount == "to_hand"]
    for camera in used:
        if camera.name not in calibrated([camera], sizes):
            height, width = sizes[camera.name]
            raise InputError(
                f"camera {camera.name} sends {width} x {height} pixels and was calibrated with {camera.camera.width} x "
                f"{camera.camera.height}, another shape: calibrate it as it is used"
            )
    return Shown(shown)


def pictures_of(arm: AttendedRobot, cameras: Sequence[str]) -> dict[str, np.ndarray]:
    """The newest pictures."""
    values = arm.robot.read().values
    return {camera: values[IMAGES + camera] for camera in cameras}
