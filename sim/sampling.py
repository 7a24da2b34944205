"""What an episode's seed makes of a randomisation in one scene: numbers, each with a name, the same for every backend."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import mujoco
import numpy as np

from sim.patterns import PATTERNS, payload_body
from sim.randomise import FACTOR, KINDS, Parameter, Randomisation, Scope
from sim.scene import Scene
from sinew.errors import InputError, unknown

_HINGE = int(mujoco.mjtJoint.mjJNT_HINGE)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One number of a draw."""

    what: str
    """A name of `sim.randomise.KINDS`."""
    name: str
    """Of the body, joint, …; empty for a whole world."""
    part: str
    """Element of it, such as x; empty where there is one."""
    index: int
    """Number of the body, geom, joint, actuator, camera or light in the model; -1 for a whole world."""
    entry: int
    """Which parameter of the file it comes from."""
    low: float
    high: float
    """Range in the unit that is kept; delays in control steps."""
    usual: float
    """What the scene has, in the same unit."""
    factor: bool
    """Whether it multiplies the scene's own value."""
    log: bool
    """Whether its logarithm is drawn evenly."""
    stream: int
    """Of random numbers; equal ones give equal draws."""

    @property
    def label(self) -> str:
        """What it is called in logs: camera_position.front.x."""
        return ".".join(filter(None, (self.what, self.name, self.part)))


@dataclass(frozen=True)
class Draws:
    """What n episodes are played with."""

    values: np.ndarray
    """(n, P) one number for each slot."""
    boundary: np.ndarray
    """(n,) int64: 2 entry + side (1 above) of the boundary that an episode is played at, or -1; for `sim.curriculum`."""


class Sampler:
    """Draws for one scene. A number depends on the seed of its episode and on what it is for, and on nothing else in the file.

    Args:
        randomisation: what is drawn.
        scene: where; as `sim.patterns.dressed` made it where patterns or payloads are drawn.

    Raises:
        InputError: a name does not exist (near ones are offered), a thing is named twice, or its unit is that of another kind of joint.
    """

    def __init__(self, randomisation: Randomisation, scene: Scene) -> None:
        self.randomisation, self.scene = randomisation, scene
        self.slots: tuple[Slot, ...] = tuple(
            slot for entry, parameter in enumerate(randomisation.parameters) for slot in _slots(scene, parameter, entry)
        )
        labels = [slot.label for slot in self.slots]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise InputError(f"the randomisation draws {twice[0]} twice; name it in one entry")
        self.names = tuple(labels)
        """(P,) what the numbers are called."""
        self._low, self._high = np.array([slot.low for slot in self.slots]), np.array([slot.high for slot in self.slots])
        self._log = np.array([slot.log for slot in self.slots])
        self._whole = np.array([slot.what == "texture" for slot in self.slots])
        """(P,) what is counted, from the least to the most and both of them."""
        self._stream = np.array([slot.stream for slot in self.slots], dtype=np.uint64)
        self.entries = np.array([slot.entry for slot in self.slots])
        """(P,) which parameter of the file each comes from."""

    def columns(self, what: str) -> list[int]:
        """Where the numbers of a kind are."""
        return [i for i, slot in enumerate(self.slots) if slot.what == what]

    def draw(self, seeds: Sequence[int] | np.ndarray, reach: np.ndarray | None = None) -> np.ndarray:
        """(n, P) numbers for the episodes of these seeds.

        Args:
            seeds: (n,).
            reach: (entries, 2) how far ranges have grown downwards and upwards, from 0 to 1; whole if left out.
        """
        low, high = self.ranges(reach)
        return self.between(low, high, uniform(np.asarray(seeds), self._stream))

    def ranges(self, reach: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(P,) least and most, where ranges have grown so far."""
        if reach is None:
            return self._low, self._high
        usual = np.array([min(max(slot.usual, slot.low), slot.high) for slot in self.slots])
        grown = reach[self.entries]
        low, high = self._along(usual, self._low, grown[:, 0]), self._along(usual, self._high, grown[:, 1])
        return np.where(self._whole, np.ceil(low - 1e-9), low), np.where(self._whole, np.floor(high + 1e-9), high)

    def between(self, low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Numbers a share (…, P) of the way from low to high."""
        values = self._along(low, high + self._whole, share)
        return np.where(self._whole, np.minimum(np.floor(values), high), values)

    def _along(self, start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
        even = start + share * (end - start)
        if not self._log.any():
            return even
        a, b = np.log(np.where(self._log, start, 1.0)), np.log(np.where(self._log, end, 1.0))
        return np.where(self._log, np.exp(a + share * (b - a)), even)


def uniform(seeds: np.ndarray, streams: np.ndarray) -> np.ndarray:
    """(n, P) numbers in [0, 1) from seeds (n,) and streams (P,) of uint64.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014), twice, so that neither seeds nor streams that follow each other show.
    """
    with np.errstate(over="ignore"):
        mixed = _mixed(seeds.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        mixed = _mixed(mixed[:, None] ^ streams[None])
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def stream_of(text: str) -> int:
    """Number of the stream of random numbers of that name."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


# ---------------------------------------------------------------- names


def _slots(scene: Scene, parameter: Parameter, entry: int) -> list[Slot]:
    """What a parameter draws in a scene."""
    kind = KINDS[parameter.what]
    low, high = parameter.bounds
    if parameter.what in ("action_delay", "observation_delay") and parameter.unit != "steps":
        low, high = low * scene.task.rate_hz, high * scene.task.rate_hz
    factor = parameter.unit == FACTOR
    if parameter.what == "texture":
        low, high = np.floor(low), np.floor(high)
        if parameter.spacing == "log" and low <= 0:
            raise InputError("texture: a logarithm has no 0: begin at 1, or leave out the spacing")
        if high > PATTERNS:
            raise InputError(f"texture: there are {PATTERNS} patterns, and 0 for none: give a range up to {PATTERNS}")
    found = [("", -1)] if kind.scope == "all" else _named(scene, parameter, kind.scope)
    slots = []
    for name, index in found:
        own = 1.0 if factor else _own(scene, parameter, index)
        if parameter.unit != FACTOR and kind.scope in ("joint", "servo"):
            _check_unit(scene, parameter, name, index)
        for part in kind.parts:
            stream = stream_of(".".join((parameter.what, ",".join(parameter.of) if parameter.together else name, part)))
            slot = Slot(
                what=parameter.what, name=name, part=part, index=index, entry=entry, low=low, high=high, usual=own, factor=factor,
                log=parameter.spacing == "log", stream=stream,
            )  # fmt: skip
            slots.append(slot)
    return slots


def _named(scene: Scene, parameter: Parameter, scope: Scope) -> list[tuple[str, int]]:
    """(name, number) of what a parameter names, in the order of the model.

    Raises:
        InputError: nothing has that name.
    """
    known = names(scene, scope)
    wanted = parameter.of or usual(scene, scope)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise unknown(f"{scope} for {parameter.what}", pattern, known)
    return [(name, index) for name, index in known.items() if any(fnmatchcase(name, pattern) for pattern in wanted)]


def names(scene: Scene, scope: Scope) -> dict[str, int]:
    """What `of` can name in a scene: {name: number in the model}.

    Surfaces and looks are named geoms, or bodies, which stand for all their geoms and whose number b is given as -1 - b.
    """
    model = scene.model
    bodies = {model.body(b).name: b for b in range(1, model.nbody)}
    if scope == "body":
        return {name: b for name, b in bodies.items() if model.body_mass[b] > 0}
    if scope in ("surface", "look", "pattern"):
        geoms = {model.geom(g).name: g for g in range(model.ngeom) if model.geom(g).name}
        if scope == "pattern":
            return geoms
        return {name: -b - 1 for name, b in bodies.items() if model.body_geomnum[b] > 0 and name not in geoms} | geoms
    if scope == "joint":
        return {model.joint(j).name: j for j in range(model.njnt) if int(model.jnt_type[j]) >= int(mujoco.mjtJoint.mjJNT_SLIDE)}
    if scope == "servo":
        return {model.actuator(a).name: a for a in range(model.nu)}
    if scope == "arm":
        return {model.joint(j).name: j for j in _arm_joints(scene)}
    if scope == "tool":
        return {robot.tool: model.body(payload_body(robot.tool)).id for robot in scene.robots if _has_body(model, payload_body(robot.tool))}
    if scope == "camera":
        return {model.camera(c).name: c for c in range(model.ncam)}
    return {model.light(i).name or f"light{i}": i for i in range(model.nlight)}


def usual(scene: Scene, scope: Scope) -> tuple[str, ...]:
    """What is meant where `of` is left out: the task's objects, the arm's joints and servos, the table's pattern, else everything."""
    model = scene.model
    if scope in ("body", "surface", "look"):
        known = names(scene, scope)
        return tuple(o.name for o in scene.objects if o.name in known) or tuple(known)
    if scope == "joint":
        return tuple(model.joint(j).name for j in _arm_joints(scene))
    if scope == "servo":
        return tuple(model.actuator(int(a)).name for a in scene.joint_ctrl)
    return ("table",) if scope == "pattern" else ("*",)


def _arm_joints(scene: Scene) -> list[int]:
    return [int(j) for address in scene.joint_qpos for j in np.flatnonzero(scene.model.jnt_qposadr == address)]


def _has_body(model: mujoco.MjModel, name: str) -> bool:
    return mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name) >= 0


def _own(scene: Scene, parameter: Parameter, index: int) -> float:
    """What the scene has already, in the unit that is kept."""
    model = scene.model
    dof = int(model.jnt_dofadr[index]) if KINDS[parameter.what].scope == "joint" else -1
    own = {
        "mass": lambda: model.body_mass[index],
        "friction": lambda: model.geom_friction[geoms_of(model, index)[0], 0],
        "damping": lambda: model.dof_damping[dof],
        "friction_loss": lambda: model.dof_frictionloss[dof],
        "armature": lambda: model.dof_armature[dof],
        "servo_stiffness": lambda: model.actuator_gainprm[index, 0],
        "servo_damping": lambda: -model.actuator_biasprm[index, 2],
        "field_of_view": lambda: np.deg2rad(model.cam_fovy[index]),
    }
    return float(own[parameter.what]()) if parameter.what in own else KINDS[parameter.what].usual


def _check_unit(scene: Scene, parameter: Parameter, name: str, index: int) -> None:
    """Refuse the unit of a hinge for a slide, and the other way round."""
    model = scene.model
    joint = int(model.actuator_trnid[index, 0]) if KINDS[parameter.what].scope == "servo" else index
    units = [unit for unit in KINDS[parameter.what].units if unit != FACTOR]
    wanted = units[0] if int(model.jnt_type[joint]) == _HINGE else units[1]
    if parameter.unit != wanted:
        kind = "hinge" if wanted == units[0] else "slide"
        raise InputError(f"{parameter.what} of {name!r}, a {kind}, is in {wanted!r} or 'factor', not {parameter.unit!r}")


def geoms_of(model: mujoco.MjModel, index: int) -> list[int]:
    """Geoms of a surface as `names` numbers it."""
    if index >= 0:
        return [index]
    body = -index - 1
    return list(range(int(model.body_geomadr[body]), int(model.body_geomadr[body] + model.body_geomnum[body])))
