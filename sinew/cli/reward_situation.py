"""What `sinew improve --reward` asks for, where it is used: in worlds to practise in, and over recorded episodes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.errors import InputError

if TYPE_CHECKING:
    import torch

    from demos import Dataset
    from rewards.files import CameraView, Situation
    from sim import GymnasiumTask, TaskInterface
    from sinew.cli.improve import Args
    from sinew.protocols import Reward, VecEnv

    Interface = TaskInterface | GymnasiumTask

Recorded = Callable[["Path"], "list[torch.Tensor] | None"]
"""Folder of a dataset → rewards (L,) of every step of every episode, by pictures as they were recorded; None for success alone."""
SIDE_BY_SIDE = 64
"""Recorded episodes that are rewarded together."""
PICTURE = (240, 320)
"""Height and width of pictures that a reward may ask for."""
DRAWN = 0.5
"""Of the potential that `shaped` has: as far as its object counts as far, m."""


def silent(text: str) -> None:
    """Says nothing: somebody else has said it."""


def chosen(args: Args, interface: Interface, demos: Path | None, say: Callable[[str], None]) -> Args:
    """`args` with the reward that can be had: success alone, where the one asked for cannot be computed in worlds and data alike.

    Raises:
        InputError: no such reward, or one that is for another task.
    """
    if args.reward == "sparse":
        return args
    import sim
    from rewards import files

    if isinstance(interface, sim.GymnasiumTask):
        if args.reward == "shaped":
            raise InputError(
                f"--reward shaped draws the tool to an object that is known for our tasks, not for {interface.name}: use sparse"
            )
    elif args.reward == "shaped":
        return args
    path = Path(args.reward)
    if not path.is_file():
        kinds = "sparse, shaped, or a file that `sinew reward` made: propose for keypoints, progress, generate, classifier"
        raise InputError(f"--reward {args.reward}: give {kinds}; there is none of that name")
    _, settings = files.load(path)
    with ExitStack() as stack:
        env = None if isinstance(interface, sim.GymnasiumTask) else sim.MujocoVecEnv(interface, 1)
        if env is not None:
            stack.callback(env.close)
        places = [("", situation(interface, 0.99, 1, env=env))]
        if demos is not None:
            from demos import Dataset

            places.append((f" for {demos}", of_data(Dataset(demos), interface, 0.99, 1)))
        for where, place in places:
            try:
                settings.build(replace(place, folder=path.parent))
            except files.RewardUnavailable as problem:
                say(f"--reward {args.reward} cannot be computed{where}: {problem}; success alone is rewarded in this run")
                return replace(args, reward="sparse")
    return args


def described(args: Args) -> dict[str, Any]:
    """What a run's config says of its reward."""
    if args.reward in ("sparse", "shaped"):
        return {"reward": args.reward}
    return {"reward": args.reward, "reward_sha256": hashlib.sha256(Path(args.reward).read_bytes()).hexdigest()}


def returns(args: Args, gamma: float = 0.99) -> tuple[float, float] | None:
    """Lowest and highest return that critics shall expect; None where the reward does not say."""
    if args.reward == "sparse":
        return 0.0, 1.0
    if args.reward == "shaped":  # the potential lies in [-0.5, 0]
        return -DRAWN, 1.0 + DRAWN
    from rewards import files

    _, settings = files.load(Path(args.reward))
    tell = getattr(settings, "returns", None)
    return None if tell is None else tell(gamma, 0)


def rewarded(
    env: VecEnv,
    interface: Interface,
    args: Args,
    gamma: float,
    say: Callable[[str], None] = silent,
    log: Callable[[Mapping[str, Any]], None] = lambda values: None,
) -> VecEnv:
    """`env` with the reward that was asked for; its own, which is success, where that is all. `log` keeps what it tells of itself."""
    import rewards
    import sim
    from rewards.environment import Rewarded

    if args.reward == "sparse":  # a world of Gymnasium has a reward of its own
        return Rewarded(env, rewards.make("sparse")) if isinstance(interface, sim.GymnasiumTask) else env
    here = replace(situation(interface, gamma, env.num_envs, say=say, env=env), log=log)
    return Rewarded(env, reward_of(args, interface, here))


def recorded(args: Args, interface: Interface, gamma: float) -> Recorded:
    """Rewards of recorded episodes, by the reward of the worlds: what a batch mixes must mean the same.

    Where the reward can be had for some of them only, all are rewarded by success alone, which is said.
    """

    def over(root: Path) -> list[torch.Tensor] | None:
        if args.reward == "sparse":
            return None
        import torch

        from demos import Dataset
        from rewards.replay import play
        from rewards.sparse import Sparse

        data = Dataset(root)
        together = min(SIDE_BY_SIDE, data.num_episodes)
        said: list[str] = []
        reward = reward_of(args, interface, replace(of_data(data, interface, gamma, together), say=said.append))
        made: list[torch.Tensor] = []
        for first in range(0, data.num_episodes, together):
            infos = [data.episode(min(first + i, data.num_episodes - 1)) for i in range(together)]
            # the last frame stands for the state after its action as well
            paths = [np.append(np.arange(e.start, e.start + e.length), e.start + e.length - 1) for e in infos]
            paid = play(data, paths, reward, won=[bool(e.success) for e in infos])
            made += [torch.from_numpy(p).float() for p in paid[: data.num_episodes - first]]
        if type(getattr(reward, "source", reward)) is Sparse:
            print(f"recorded episodes: {said[-1]}", file=sys.stderr)
            return None
        return made

    return over


def reward_of(args: Args, interface: Interface, here: Situation) -> Reward:
    """The reward of `--reward`, as it is there."""
    import rewards
    from rewards import files
    from rewards.shaping import DistancePotential

    if args.reward == "shaped":
        potential = DistancePotential(here.observation, here.objects[0], DRAWN)
        return rewards.make("shaped", potential=potential, gamma=here.gamma)
    return files.build(Path(args.reward), here)


def situation(
    interface: Interface, gamma: float, num_envs: int, *, say: Callable[[str], None] = silent, env: VecEnv | None = None
) -> Situation:
    """What a reward may know of simulated worlds.

    Args:
        interface: task.
        gamma: discount per step.
        num_envs: worlds.
        say: tells the user.
        env: the worlds, where pictures of them can be taken.
    """
    import sim
    from rewards.files import Situation

    told: dict[str, Any] = {"observation": interface.observation_spec, "action": interface.action_spec, "gamma": gamma}
    told |= {"num_envs": num_envs, "max_episode_steps": interface.max_episode_steps, "say": say}
    told |= {"task_text": interface.task_text, "objects": tuple(getattr(interface, "objects", ()))}
    if isinstance(interface, sim.GymnasiumTask):
        return Situation(**told)

    def picture(camera: str, world: int) -> np.ndarray:
        assert isinstance(env, sim.MujocoVecEnv)
        return env.render(camera, *PICTURE, np.array([world]))[0]

    if not isinstance(env, sim.MujocoVecEnv):
        return Situation(**told, cameras=cameras(interface))
    from sinew.cli.reward_scene import WorldEyes

    eyes = WorldEyes(interface, env)
    return Situation(**told, cameras=cameras(interface), pictures=picture, look=eyes.look, watch=eyes.watch)


def cameras(interface: TaskInterface) -> dict[str, CameraView]:
    """Simulated cameras that stand still, as pictures of them are drawn here."""
    return standing(interface, {name: PICTURE for name in still(interface)})


def still(interface: TaskInterface) -> list[str]:
    """Names of simulated cameras that stand still."""
    model = interface.scene.model
    return [model.camera(i).name for i in range(model.ncam) if model.cam_bodyid[i] == 0]


def standing(interface: TaskInterface, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, CameraView]:
    """Simulated cameras that stand still, for pictures of sizes {name: (height, width)}."""
    import sim
    from rewards.files import CameraView

    model, found = interface.scene.model, {}
    for name in still(interface):
        if name in sizes:
            height, width = sizes[name][:2]
            matrix, pose = sim.camera_matrix(model, name, height, width), sim.camera_pose(model, model.qpos0, name)
            found[name] = CameraView(matrix=matrix, T_world_camera=pose, width=width, height=height)
    return found


def of_data(data: Dataset, interface: Interface, gamma: float, together: int) -> Situation:
    """What a reward may know of recorded episodes."""
    here = situation(interface, gamma, together)
    return replace(here, observation=data.observation_spec, action=data.action_spec)
