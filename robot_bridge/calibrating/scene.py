"""A simulated robot that can be calibrated: a board before a camera on its hand, or in its hand before a camera beside it.

The camera is not quite where the drawing has it, by up to a centimetre and three degrees, and the truth is told, so that whoever
calibrates sees how far off they are.
"""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from calibration.boards import Board
from calibration.model import Mount
from robot_bridge.calibrating.hand import Hand, hand_of, hand_of_task
from robot_bridge.robots.config import RobotConfig
from robot_bridge.robots.mjcf import mjcf as robot_mjcf
from robot_bridge.robots.stand_in import ArmPhysics
from sinew.errors import DataError, InputError, unknown
from sinew.se3 import Array, matrix_to_quaternion, se3, se3_exp, se3_inverse, so3_exp, so3_log

if TYPE_CHECKING:
    from sim import RobotSim

PLACES: dict[str, tuple[Mount, str]] = {"table": ("in_hand", "wrist"), "hand": ("to_hand", "front")}
"""Where the board is: mount and name of the camera that is calibrated with it."""
OFF_M, OFF_RAD = 0.01, float(np.deg2rad(3.0))
"""The camera is up to this far from where the drawing has it, along and about each axis."""
WRIST = se3(so3_exp(np.array([0.0, 0.0, np.pi / 2])) @ so3_exp(np.array([np.deg2rad(12.0), 0.0, 0.0])), np.array([0.075, 0.0, -0.12]))
"""T_tool_camera by the drawing: beside the hand, looking where the tool points."""
WRIST_FOVY_DEG, FRONT_FOVY_DEG = 55.0, 40.0
BOARD_M = 0.4
"""From the camera to a board that is not on the table."""
FRONT_BOARDS, FRONT_UP_RAD = 2.9, float(np.deg2rad(30.0))
"""Of the camera beside the robot: how far from the hand at home in widths of the board, and how much it looks down."""
IN_HAND_M = 0.03
"""From the tool to the upper edge of a board in the hand, towards the camera."""
TEXELS_PER_M = 4000.0
THICK_M = 0.002


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Where the camera of a simulated scene is."""

    mount: Mount
    camera: str
    T: Array
    """T_hand_camera or T_base_camera (4, 4)."""
    Z: Array
    """T_base_board or T_hand_board (4, 4)."""
    drawing: Array
    """Where the drawing has the camera (4, 4)."""

    def error(self, T: Array) -> tuple[float, float]:
        """How far a calibration (4, 4) is off: m, rad."""
        off = se3_inverse(self.T) @ np.asarray(T, dtype=float).reshape(4, 4)
        return float(np.linalg.norm(off[:3, 3])), float(np.linalg.norm(so3_log(off[:3, :3])))

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        matrices = {name: np.asarray(getattr(self, name)).tolist() for name in ("T", "Z", "drawing")}
        path.write_text(json.dumps({"mount": self.mount, "camera": self.camera, **matrices}, indent=1))

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read what `save` wrote.

        Raises:
            InputError: no such file.
            DataError: it is damaged.
        """
        try:
            content = json.loads(path.read_text())
            matrices = {name: np.array(content[name], dtype=float).reshape(4, 4) for name in ("T", "Z", "drawing")}
            return cls(mount=content["mount"], camera=content["camera"], **matrices)
        except OSError as e:
            raise InputError(f"{path} cannot be read: {e.strerror}") from None
        except (ValueError, KeyError, TypeError) as e:
            raise DataError(f"{path} is no truth of a simulated scene, as 'sinew robot --truth' writes it: {e}") from None


def task_scene(board: Board, place: str, seed: int = 0) -> tuple[RobotSim, Truth]:
    """The arm of our simulated tasks with a board; the seed fixes how far off the drawing its camera is."""
    from sim import RobotSim
    from sim.interface import TaskInterface
    from sim.scene import build_scene, mjcf

    empty = _empty_task()
    bare = TaskInterface(build_scene(empty, mujoco.MjModel.from_xml_string(mjcf(empty))))
    spec = mujoco.MjSpec.from_string(mjcf(empty))
    truth = _furnish(spec, hand_of_task(bare), "tool", np.array(bare.scene.home), board, place, seed)
    interface = TaskInterface(build_scene(empty, spec.compile()))
    return RobotSim("calibrate", seed, interface), truth


def robot_scene(
    config: RobotConfig, board: Board, place: str, seed: int = 0, *, arm: int = 0, hand_frame: str = ""
) -> tuple[ArmPhysics, Truth]:
    """A robot that is known as data with a board; see `task_scene`. The truth is told in the frames of `hand_of`.

    Raises:
        InputError: its frames are not known, or not this one.
    """
    hand = hand_of(config, arm, hand_frame)
    spec = mujoco.MjSpec.from_string(robot_mjcf(config))
    home = np.array(config.spec.home_rad or [0.0] * len(config.spec.joint_names))
    truth = _furnish(spec, hand, config.tools[arm], home, board, place, seed)
    return ArmPhysics(config, seed, spec.compile()), truth


class DrawnApart:
    """A world whose pictures are drawn by a thread of their own, so that a robot that is served never waits for them.

    Each picture is the one that was asked for before, as late as a camera's; while it is being drawn, the one before is given again,
    the same object.

    Args:
        physics: the world; all else is asked of it.
    """

    def __init__(self, physics: Any) -> None:
        self._physics, self._pool = physics, ThreadPoolExecutor(1)
        self._drawing: dict[tuple[str, int, int], Future[np.ndarray]] = {}
        self._shown: dict[tuple[str, int, int], np.ndarray] = {}

    def image(self, camera: str, height: int = 240, width: int = 320) -> np.ndarray:
        """(height, width, 3) uint8."""
        key = (camera, height, width)
        drawing = self._drawing.get(key)
        if drawing is not None and not drawing.done():
            return self._shown[key]
        self._shown[key] = self._physics.image(*key) if drawing is None else drawing.result()
        self._drawing[key] = self._pool.submit(self._physics.image, *key)
        return self._shown[key]

    def close(self) -> None:
        """End the thread and free the renderer."""
        self._pool.shutdown()
        self._physics.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._physics, name)


def _empty_task() -> Any:
    """A scene with the arm and nothing to do."""
    from sim.tasks import Task

    class Empty(Task):
        text, objects, max_episode_steps = "Stand before a calibration board.", (), 1000

        def fixtures(self) -> str:
            return ""

        def spawn(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
            return {}

        def success(self, view: Any) -> np.ndarray:
            return np.zeros(len(view.tool), dtype=bool)

    return Empty()


def _furnish(spec: Any, hand: Hand, tool: str, home: Array, board: Board, place: str, seed: int) -> Truth:
    """Put camera and board into a scene's description."""
    if place not in PLACES:
        raise unknown("place of the board", place, PLACES)
    mount, name = PLACES[place]
    rng = np.random.default_rng(seed)
    off = se3_exp(np.concatenate([rng.uniform(-OFF_M, OFF_M, 3), rng.uniform(-OFF_RAD, OFF_RAD, 3)]))
    T_world_tool, T_body_tool, body = _at_home(spec, hand, tool, home)
    T_world_base = hand.T_world_base
    T_hand_tool = se3_inverse(T_world_base @ hand.pose(home)) @ T_world_tool
    if spec.camera(name) is not None:
        spec.delete(spec.camera(name))
    if place == "table":
        drawing = T_hand_tool @ WRIST
        T_tool_board = se3_inverse(T_world_tool) @ _before(T_world_tool @ WRIST, board, rng)
        truth = Truth(mount=mount, camera=name, T=drawing @ off, Z=hand.pose(home) @ T_hand_tool @ T_tool_board, drawing=drawing)
        _add_camera(body, name, T_body_tool @ WRIST @ off, WRIST_FOVY_DEG)
        _add_board(spec, spec.worldbody, T_world_base @ truth.Z, board)
        return truth
    T_world_camera = _beside(T_world_tool, T_world_base, FRONT_BOARDS * board.size_m[0])
    drawing = se3_inverse(T_world_base) @ T_world_camera
    held = T_world_tool[:3, 3] + 0.5 * board.size_m[1] * T_world_tool[:3, 2] - IN_HAND_M * T_world_camera[:3, 2]
    T_world_board = se3(T_world_camera[:3, :3], held) @ _tilted(rng)
    T_tool_board = se3_inverse(T_world_tool) @ T_world_board
    truth = Truth(mount=mount, camera=name, T=drawing @ off, Z=T_hand_tool @ T_tool_board, drawing=drawing)
    _add_camera(spec.worldbody, name, T_world_base @ truth.T, FRONT_FOVY_DEG)
    _add_board(spec, body, T_body_tool @ T_tool_board, board)
    return truth


def _at_home(spec: Any, hand: Hand, tool: str, home: Array) -> tuple[Array, Array, Any]:
    """T_world_tool with the robot at home, T_body_tool, and the body that the tool is on."""
    model = spec.compile()
    data = mujoco.MjData(model)
    for joint, value in zip(hand.spec.joint_names, home, strict=True):
        data.joint(joint).qpos[0] = value
    mujoco.mj_kinematics(model, data)
    site = spec.site(tool)
    at = data.site(tool)
    T_world_tool = se3(at.xmat.reshape(3, 3), at.xpos)
    owner = data.body(site.parent.name)
    T_world_body = se3(owner.xmat.reshape(3, 3), owner.xpos)
    return T_world_tool, se3_inverse(T_world_body) @ T_world_tool, site.parent


def _before(T_world_camera: Array, board: Board, rng: np.random.Generator) -> Array:
    """T_world_board of a board that the camera looks at: flat on the table where that is near, else facing the camera."""
    line = T_world_camera[:3, 2]
    down = -T_world_camera[2, 3] / line[2] if line[2] < -0.5 else np.inf
    if not 0.15 < down < 1.5 * BOARD_M:
        above = float(T_world_camera[2, 3] - 0.5 * np.linalg.norm(board.size_m) - board.square_m)  # nothing of it is in the floor
        away = min(BOARD_M, above / -line[2]) if line[2] < 0 else BOARD_M
        return T_world_camera @ se3_exp(np.array([0, 0, away, 0, 0, 0])) @ _tilted(rng)
    right = T_world_camera[:3, 0] * np.array([1, 1, 0])
    right /= np.linalg.norm(right)
    axes = np.column_stack([right, np.cross([0.0, 0.0, -1.0], right), [0.0, 0.0, -1.0]])
    middle = T_world_camera[:3, 3] + down * line
    return se3(axes @ so3_exp(np.array([0, 0, rng.uniform(-0.2, 0.2)])), [middle[0], middle[1], 2 * THICK_M])


def _tilted(rng: np.random.Generator) -> Array:
    return se3(so3_exp(rng.uniform(-0.15, 0.15, 3)), np.zeros(3))


def _beside(T_world_tool: Array, T_world_base: Array, distance_m: float) -> Array:
    """T_world_camera of a camera before the robot that looks back at its hand, from above."""
    tool = T_world_tool[:3, 3]
    out = (tool - T_world_base[:3, 3]) * np.array([1, 1, 0])
    out = out / np.linalg.norm(out) if np.linalg.norm(out) > 1e-3 else np.array([1.0, 0, 0])
    away = np.cos(FRONT_UP_RAD) * out + np.sin(FRONT_UP_RAD) * np.array([0, 0, 1.0])
    right = np.cross(-away, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    return se3(np.column_stack([right, np.cross(-away, right), -away]), tool + distance_m * away)


def _add_camera(body: Any, name: str, T_body_camera: Array, fovy_deg: float) -> None:
    """A camera, given in computer vision's axes; MuJoCo's looks along -z with y up."""
    turn = T_body_camera[:3, :3] @ np.diag([1.0, -1.0, -1.0])
    body.add_camera(name=name, pos=T_body_camera[:3, 3], quat=matrix_to_quaternion(turn), fovy=fovy_deg)


def _add_board(spec: Any, body: Any, T_body_board: Array, board: Board) -> None:
    """A plate with the board printed on it and a white margin."""
    margin_m = 0.5 * board.square_m
    picture = np.pad(board.picture(TEXELS_PER_M), round(margin_m * TEXELS_PER_M), constant_values=255)
    height, width = picture.shape
    texture = spec.add_texture(name="board", type=mujoco.mjtTexture.mjTEXTURE_2D, width=width, height=height, nchannel=3)
    texture.data = np.repeat(picture[..., None], 3, axis=2).tobytes()
    spec.add_material(name="board", texrepeat=[1, 1], texuniform=False).textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "board"
    turn = T_body_board[:3, :3] @ np.diag([1.0, -1.0, -1.0])
    middle = T_body_board[:3, 3] + THICK_M * T_body_board[:3, 2]
    size = [width / TEXELS_PER_M / 2, height / TEXELS_PER_M / 2, THICK_M]
    body.add_geom(
        name="board", type=mujoco.mjtGeom.mjGEOM_BOX, pos=middle, quat=matrix_to_quaternion(turn), size=size, material="board",
        contype=0, conaffinity=0, mass=0.0,
    )  # fmt: skip
