"""A simulated scene as a reward is proposed for it: two views, poses, and the truth that an oracle answers from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.errors import InputError

if TYPE_CHECKING:
    from rewards.keypoint.oracle import KeypointTruth
    from rewards.keypoint.views import Scene, View
    from sim import MujocoVecEnv, TaskInterface
    from sim.views import SceneViews

CAMERA, HEIGHT, WIDTH = "front", 480, 640
ASIDE_RAD = (0.9, -0.9, 0.6, -0.6)
"""Places of the second camera around the scene; the one that sees most of the objects is taken."""
MOVED_M, CLOSE_M, CORNER_M, NEAR_M = 0.005, 0.015, 0.02, 0.15
"""What counts as moved, as grasped, as a corner of a way, and as the goal's surroundings."""
TRIES = 10
"""Scenes in which the expert may fail."""


def open_scene(interface: TaskInterface, seed: int, oracle: bool) -> Scene:
    """Look at the scene of a seed, and play the expert in it where an oracle shall know the truth; poses are those of objects and tool.

    Raises:
        InputError: the expert never solves it.
    """
    from dataclasses import replace

    scene = interface.scene
    motion = _expert_motion(interface, seed, TRIES) if oracle else None
    qpos = motion.qpos if motion else scene.initial(seed)
    seen, _ = look(interface, qpos)
    truth = _truth(motion, seen.view, seen.second, tuple(interface.objects)) if motion and seen.second else None
    return replace(seen, truth=truth)


def look(
    interface: TaskInterface, qpos: np.ndarray, turn_rad: float | None = None, drawer: SceneViews | None = None
) -> tuple[Scene, float]:
    """What the camera sees of a state (nq,), and another one from aside, with all poses.

    Args:
        interface: task.
        qpos: state.
        turn_rad: where the second camera is around the scene; of several places the one that sees most if None.
        drawer: draws; one of its own if None.

    Returns:
        the scene; where the second camera is.
    """
    from rewards.keypoint.views import Scene
    from sim.views import SceneViews

    own = drawer or SceneViews(interface.scene.model)
    try:
        first = own.look(qpos, CAMERA, HEIGHT, WIDTH)
        turns = ASIDE_RAD if turn_rad is None else (turn_rad,)
        aside = [own.look(qpos, CAMERA, HEIGHT, WIDTH, turn) for turn in turns]
    finally:
        if drawer is None:
            own.close()
    bodies = [interface.scene.model.body(name).id for name in interface.objects]

    def seen(place: int) -> tuple[int, int]:
        counts = [int((aside[place].body == body).sum()) for body in bodies]
        return min(counts, default=0), sum(counts)

    best = max(range(len(turns)), key=seen)
    return Scene(view=_view(interface, first), second=_view(interface, aside[best]), poses=_poses(interface, qpos)), turns[best]


def _poses(interface: TaskInterface, qpos: np.ndarray) -> dict[str, np.ndarray]:
    """{object, or "tool": (4, 4)}."""
    scene = interface.scene
    poses = {name: _matrix(pose[0]) for name, pose in scene.poses(qpos[None]).items()}
    vectors, _ = interface.observe_and_view(
        qpos[None, scene.joint_qpos], np.zeros((1, len(scene.joint_qvel))), scene.openings(qpos[None]), scene.poses(qpos[None])
    )
    return poses | {"tool": _tool(interface, vectors["observation.state"])}


def _view(interface: TaskInterface, look: Any) -> View:
    from rewards.files import CameraView
    from rewards.keypoint.views import View

    camera = CameraView(matrix=look.matrix, T_world_camera=look.T_world_camera, width=look.image.shape[1], height=look.image.shape[0])
    masks = {name: look.body == interface.scene.model.body(name).id for name in interface.objects}
    return View(image=look.image, camera=camera, depth_m=look.depth_m, masks=masks)


class WorldEyes:
    """Looks at simulated worlds for a reward: at the beginning of an episode for whoever is asked, and after every step to follow points.

    What is followed is drawn with speckles on the objects: plain ones give nothing to hold on to. Both cameras are those of `look`.

    Args:
        interface: task.
        env: the worlds.
    """

    def __init__(self, interface: TaskInterface, env: MujocoVecEnv) -> None:
        self.interface, self.env = interface, env
        self._plain: SceneViews | None = None
        self._speckled: SceneViews | None = None
        self._turn: float | None = None

    def look(self, obs: Mapping[str, Any], world: int) -> Scene:
        """See `rewards.files.Situation.look`; the truth is found out when it is asked for."""
        from dataclasses import replace

        from sim.views import SceneViews

        self._plain = self._plain or SceneViews(self.interface.scene.model)
        qpos, seed = self.env.qpos[world].copy(), int(self.env.seeds[world])
        seen, self._turn = look(self.interface, qpos, self._turn, self._plain)

        def truth(*question: Any) -> Any:
            assert seen.second is not None
            return _truth(_expert_motion(self.interface, seed, 1), seen.view, seen.second, tuple(self.interface.objects))(*question)

        return replace(seen, truth=truth)

    def watch(self, obs: Mapping[str, Any], world: int, first: bool) -> tuple[View, ...]:
        """See `rewards.files.Situation.watch`; what belongs to which object is told at the beginning alone."""
        from rewards.files import CameraView
        from rewards.keypoint.views import View
        from sim.views import SceneViews, speckled

        self._speckled = self._speckled or SceneViews(speckled(self.interface.scene))
        qpos = self.env.qpos[world].copy()
        if self._turn is None:
            self._turn = look(self.interface, qpos, None, self._speckled)[1]
        turns = (0.0, self._turn)
        if first:
            return tuple(_view(self.interface, self._speckled.look(qpos, CAMERA, HEIGHT, WIDTH, turn)) for turn in turns)
        images = [self._speckled.picture(qpos, CAMERA, HEIGHT, WIDTH, turn) for turn in turns]
        return tuple(
            View(image=image, camera=CameraView(matrix=matrix, T_world_camera=T, width=WIDTH, height=HEIGHT)) for image, matrix, T in images
        )


def _matrix(pose: np.ndarray) -> np.ndarray:
    from sinew.se3 import quaternion_to_matrix, se3

    return se3(quaternion_to_matrix(pose[3:]), pose[:3])


def _tool(interface: TaskInterface, state: np.ndarray) -> np.ndarray:
    """(4, 4) of the first tool, from observation.state (1, D)."""
    from sinew.se3 import rotation6d_to_matrix, se3

    names = list(interface.observation_spec["observation.state"].names)
    at = next(i for i, name in enumerate(names) if name.endswith("tool.x"))
    return se3(rotation6d_to_matrix(state[0, at + 3 : at + 9].astype(np.float64)), state[0, at : at + 3].astype(np.float64))


# ---------------------------------------------------------------- truth


@dataclass(frozen=True)
class _Motion:
    """What happens when the expert solves a scene."""

    qpos: np.ndarray
    """(nq,) at the start."""
    tool: np.ndarray
    """(T, 3)."""
    objects: dict[str, np.ndarray]
    """Name → (T, 3)."""


def _expert_motion(interface: TaskInterface, seed: int, tries: int) -> _Motion:
    import sim

    expert = sim.Expert(interface)
    env = sim.MujocoVecEnv(interface, 1)
    try:
        for number in range(seed, seed + tries):
            obs = env.reset([number])
            expert.reset(seeds=[number])
            start, views, over = env.qpos[0].copy(), [], False
            while not over:
                views.append(interface.view({k: v.numpy() for k, v in obs.items()}))
                obs, _, terminated, truncated, info = env.step(expert.act(obs))
                over = bool(terminated[0] | truncated[0])
            if bool(info["success"][0]):
                views.append(interface.view({k: v.numpy() for k, v in info["final_observation"].items()}))
                tool = np.stack([v.tool[0] for v in views])
                return _Motion(start, tool, {name: np.stack([v.positions[name][0] for v in views]) for name in interface.objects})
    finally:
        env.close()
    where = f"any of scenes {seed} to {seed + tries - 1}: choose another --seed" if tries > 1 else f"scene {seed}"
    raise InputError(f"the oracle is the task's expert, and it does not solve {where}")


def _truth(motion: _Motion, view: View, second: View, objects: Sequence[str]) -> KeypointTruth:
    """Who moves, where it is taken hold of, and along which way."""
    from rewards.keypoint.oracle import KeypointTruth

    travelled = {name: np.linalg.norm(track - track[0], axis=1) for name, track in motion.objects.items()}
    moved = max(objects, key=lambda name: travelled[name][-1], default=None)
    if moved is None or travelled[moved][-1] < MOVED_M:  # the tool itself has to get somewhere
        goal = _nearest_object(motion, motion.tool[-1], {})
        way = corners(motion.tool, CORNER_M)[1:]
        return KeypointTruth(view=view, second=second, path=_belonging(way, goal, motion), target_m=_start(motion, goal))
    track = motion.objects[moved]
    first = int(np.argmax(travelled[moved] > MOVED_M))
    still = {name for name in objects if travelled[name][-1] > MOVED_M}
    goal = _nearest_object(motion, track[-1], still)
    held = np.linalg.norm(motion.tool[-1] - track[-1]) < NEAR_M / 2
    grasp = track[0] + (motion.tool[first] - track[first])
    approach = corners(motion.tool[: first + 1], CORNER_M)[1:-1] if held else []
    way = corners(track[first:], CORNER_M)[1:]
    return KeypointTruth(
        view=view, second=second, function_m=track[0], grasp_m=grasp if held else None, target_m=_start(motion, goal),
        approach=approach, path=_belonging(way, goal, motion),
    )  # fmt: skip


def _nearest_object(motion: _Motion, point: np.ndarray, but: Any) -> str | None:
    """The object that stands still near a point; None where there is none."""
    apart = {name: np.linalg.norm(track[0] - point) for name, track in motion.objects.items() if name not in but}
    near = min(apart, key=lambda name: apart[name], default=None)
    return near if near is not None and apart[near] < NEAR_M else None


def _start(motion: _Motion, name: str | None) -> np.ndarray | None:
    return None if name is None else motion.objects[name][0]


def _belonging(way: Sequence[np.ndarray], goal: str | None, motion: _Motion) -> list[tuple[np.ndarray, str]]:
    """Places with what they move with: the goal where they are near it, else the start."""
    place = _start(motion, goal)
    return [(p, "target" if place is not None and np.linalg.norm(p[:2] - place[:2]) < NEAR_M / 2 else "start") for p in way]


def corners(way: np.ndarray, tolerance_m: float) -> list[np.ndarray]:
    """The points of a way (T, 3) that it may be drawn with, to a tolerance. Source: Ramer 1972, Douglas and Peucker 1973."""
    if len(way) < 3:
        return list(way)
    along = way[-1] - way[0]
    share = np.clip((way - way[0]) @ along / max(float(along @ along), 1e-12), 0, 1)
    off = np.linalg.norm(way - (way[0] + share[:, None] * along), axis=1)
    worst = int(off.argmax())
    if off[worst] <= tolerance_m:
        return [way[0], way[-1]]
    return corners(way[: worst + 1], tolerance_m)[:-1] + corners(way[worst:], tolerance_m)
