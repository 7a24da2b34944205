"""Has a mount moved: pictures as they come, against the stored calibration, with rare false alarms however long it watches.

Each picture is condensed into a twist of its camera (`calibration.sighting`). A Kalman filter holds what is not known even when nothing
moved: the calibration's own error, where the board is, and the robot's error, which is drawn anew only when the hand has moved, so that
thousands of pictures of a standing robot count once. For every mount, and every picture at which it may have been bumped, a second
filter lets that mount be elsewhere from then on. Its likelihood over the first one's is a martingale while nothing moves, and the sum
over the pictures at which the bump may have been (Shiryaev 1963, Roberts 1966) passes N within T pictures with a chance of T / N at
most (Doob's inequality). The mount whose filters explain the pictures best is named. The promise holds as far as the calibration's
noise levels do: a robot a third noisier than told does not matter, one twice as noisy raises false alarms within a hundred pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import chi2

from calibration.results import Mounted, mounted
from calibration.sighting import sight, sure_pose
from calibration.solve import Result
from calibration.views import View as BoardView
from calibration.views import board_poses, pack
from sinew.errors import DataError, InputError
from sinew.se3 import Array, se3_adjoint, se3_inverse, se3_log, so3_log

On = Literal["base", "hand", "robot"]
"""What was seen: a board or tag that stands on the ground as the robot's base does, one on the hand, or the robot's hand itself."""

PICTURES_PER_FALSE_ALARM = 1e6
BUMPS = ((2e-3, np.deg2rad(0.3)), (0.03, np.deg2rad(3.0)))
"""Standard deviations of small and of large bumps, m and rad, each direction."""
TOLERATED_M, TOLERATED_RAD = 1e-4, float(np.deg2rad(0.02))
"""Added to the calibration's own uncertainty: what its model leaves out is no bump."""
ANYWHERE_M, ANYWHERE_RAD = 0.1, 0.2
"""How far a board whose place is not known may be from where the first picture puts it."""
STILL_M, STILL_RAD = 2e-3, float(np.deg2rad(0.3))
"""A hand that moved by less makes the same error again."""
RECENT = 32
"""So many of the last pictures, and the first one, may be the one at which a mount was bumped."""
WORTH_M, WORTH_RAD = 3e-4, float(np.deg2rad(0.05))
"""What moved by less is not told of: another lamp moves corners by as much."""
USUAL: Mapping[str, On] = {"in_hand": "base", "to_hand": "hand"}
"""Where the board is that a camera was calibrated with."""
BASE = "the robot's base or all cameras beside it"
TOLERATED = np.diag([TOLERATED_M**2] * 3 + [TOLERATED_RAD**2] * 3)
VERSION = 1
LIKELY = 0.05
"""Mounts that are less likely than this to be the moved one are not named."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What was seen."""

    camera: str
    """Name of a watched camera."""
    robot: Array
    """T_base_hand (4, 4)."""
    points: Array
    """Corners on the board, or keypoints in the hand's frame (K, 3), m."""
    pixels: Array
    """(K, 2); NaN where one was not seen."""
    sigma: Array | None = None
    """Standard deviation of each pixel relative to the calibration's (K,); None for equal ones."""
    on: On | None = None
    """What the points are of; None for the board where the calibration had it: on the ground before a camera on the hand, on the hand
    before one beside the robot."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What the pictures so far say."""

    holds: bool
    """No mount has moved, as far as can be told; never true again after an alarm."""
    evidence: float
    """How much more likely the pictures are with a bump than without, as a sum over bumps; an alarm above the wanted rate."""
    chance: float
    """How often chance alone would put this one picture so far off; NaN when it could not be used."""
    moved: tuple[str, ...]
    """Mounts that may have moved, the likeliest first; empty while all is well."""
    likelihood: dict[str, float]
    """Of each mount, that it is the moved one if one is."""
    moved_m: float
    moved_rad: float
    """By how much the likeliest one."""
    since: int
    """Number of the picture from which on it is elsewhere."""
    told: str
    """One line for a person."""


class DriftMonitor:
    """Watches the cameras of one robot, and the board where there is one."""

    def __init__(
        self, cameras: Sequence[Mounted], *, covariance: Array | None = None, pictures_per_false_alarm: float = PICTURES_PER_FALSE_ALARM
    ) -> None:
        """Begin.

        Args:
            cameras: the stored calibrations.
            covariance: of all cameras' twists and then the board's (6 C + 6, 6 C + 6), m and rad, when the board is still where it was;
                None when it may have been put elsewhere: the first picture tells where.
            pictures_per_false_alarm: N; within T pictures the chance of a false alarm is at most T / N.

        Raises:
            InputError: no cameras, two of one name, or a covariance of another shape.
        """
        self.cameras = {m.name: m for m in cameras}
        if not cameras or len(self.cameras) < len(cameras):
            raise InputError(f"the monitor needs cameras of different names, not {[m.name for m in cameras]}")
        self.limit, self.seen, self._alarm = pictures_per_false_alarm, 0, False
        self._camera = {m.name: slice(6 * c, 6 * c + 6) for c, m in enumerate(cameras)}
        calibrated = USUAL[cameras[0].mount]
        boards = sorted(("base", "hand"), key=lambda on: on != calibrated)
        self._board = {on: slice(6 * i, 6 * i + 6) for i, on in enumerate(boards, len(cameras))}
        self._hand = slice(6 * len(cameras) + 12, 6 * len(cameras) + 18)
        self._places: dict[str, Array] = {}
        """T_base_board and T_hand_board (4, 4), those that were seen."""
        start = self._first_covariance(cameras, covariance)
        self._robot_noise = np.diag([max(m.robot_sigma_m for m in cameras) ** 2] * 3 + [max(m.robot_sigma_rad for m in cameras) ** 2] * 3)
        self._last_hand: Array | None = None
        self._seen_parts = {BASE}
        self._pairs: set[tuple[str, On, bool]] = set()
        """Which camera saw what, and whether that stands still before it."""
        self.mounts, self._bumps = self._hypotheses(len(start))
        self._mean, self._covariance = np.zeros((1, len(start))), start[None]
        self._log, self._start, self._mount = np.zeros(1), np.zeros(1, dtype=int), np.full(1, -1)
        self._origin = np.zeros((1, len(start)))

    @classmethod
    def of(cls, result: Result, names: tuple[str, ...] = (), **more: float) -> DriftMonitor:
        """A monitor that knows where the board is, from the calibration itself."""
        layout = result.fit.layout
        wanted = np.concatenate([*[np.arange(s.start, s.stop) for s in layout.x], np.arange(layout.z.start, layout.z.stop)])
        return cls(mounted(result, names), covariance=result.fit.covariance[np.ix_(wanted, wanted)], **more)

    def see(self, picture: Picture) -> Drift:
        """Take in one picture.

        Raises:
            InputError: a camera that is not watched, or arrays that do not fit together.
        """
        stored, on = self._stored(picture.camera, picture.robot, picture.on)
        k = len(picture.points)
        if np.shape(picture.points) != (k, 3) or np.shape(picture.pixels) != (k, 2):
            raise InputError(f"points {np.shape(picture.points)} and pixels {np.shape(picture.pixels)} do not fit together")
        points = np.asarray(picture.points, dtype=float) * (1.0 if on == "robot" else stored.scale)
        if on != "robot" and on not in self._places:
            frame = self._frame(stored, picture.robot, on)
            self._places[on] = se3_inverse(frame) @ self._seen_board(stored, replace(picture, points=points))
        sigma = stored.pixel_sigma * (np.ones(k) if picture.sigma is None else picture.sigma)
        place = self._frame(stored, picture.robot, on) @ self._places.get(on, np.eye(4))
        found = sight(stored.camera, place, points, np.asarray(picture.pixels, dtype=float), sigma)
        if found is None:
            return self._drift(float("nan"))
        return self._take(stored, picture.robot, on, place, found.twist, found.information)

    def see_pose(self, camera: str, robot: Array, T: Array, covariance: Array) -> Drift:
        """Take in one picture in which something else found where the camera is by the robot's own body: its silhouette, or a network.

        Args:
            camera: name of a watched camera.
            robot: T_base_hand (4, 4).
            T: where the picture puts the camera, as the calibration tells it: T_base_camera, or T_hand_camera (4, 4).
            covariance: of that, as in results: (6, 6), rad and then m, in the camera's frame. What pictures have in common is not to be
                in it twice: a systematic error must be as large here as it is.

        Raises:
            InputError: a camera that is not watched, or arrays of other shapes.
        """
        stored, on = self._stored(camera, robot, "robot")
        if np.shape(T) != (4, 4) or np.shape(covariance) != (6, 6) or not (np.isfinite(T).all() and np.isfinite(covariance).all()):
            raise InputError(f"a pose (4, 4) and a covariance (6, 6) are needed, given are {np.shape(T)} and {np.shape(covariance)}")
        twist = se3_log(se3_inverse(stored.T) @ T)
        information: Array = np.linalg.inv(np.roll(covariance, (3, 3), (0, 1))).astype(np.float64)
        return self._take(stored, robot, on, self._frame(stored, robot, on), twist, information)

    def _take(self, stored: Mounted, robot: Array, on: On, place: Array, twist: Array, information: Array) -> Drift:
        """A picture that says that its camera is at X exp(twist), with an information (6, 6), by what is at `place`."""
        values, axes = np.linalg.eigh(0.5 * (information + information.T))
        told = values > 1e-9 * values[-1]
        root = np.sqrt(values[told])[:, None] * axes.T[told]
        by_state = np.zeros((len(root), self._hand.stop))
        by_state[:, self._camera[stored.name]] = root
        by_state[:, self._hand] = root @ self._by_hand(stored, robot, on)
        if on != "robot":
            by_state[:, self._board[on]] = -root @ se3_adjoint(place)
        self._move_hand(robot)
        self._seen_parts |= {f"camera {stored.name}", self._board_names.get(on, "")}
        self._pairs.add((stored.name, on, on != "robot" and on != USUAL[stored.mount]))
        self._branch()
        chance = self._update(by_state, root @ twist)
        self.seen += 1
        return self._drift(chance)

    def _stored(self, camera: str, robot: Array, on: On | None) -> tuple[Mounted, On]:
        """The calibration of a camera, and what its picture shows."""
        stored = self.cameras.get(camera)
        if stored is None:
            raise InputError(f"camera {camera!r} is not watched; watched are {', '.join(self.cameras)}")
        if np.shape(robot) != (4, 4) or not np.isfinite(robot).all():
            raise InputError(f"the robot's pose {np.shape(robot)} is not finite, or no (4, 4)")
        return stored, on or USUAL[stored.mount]

    def _frame(self, stored: Mounted, robot: Array, on: On) -> Array:
        """T_camera_base for what stands on the ground, T_camera_hand for the hand and what is on it."""
        inverse, on_base = se3_inverse(stored.T), on == "base"
        if stored.mount == "in_hand":
            return inverse @ se3_inverse(robot) if on_base else inverse
        return inverse if on_base else inverse @ robot

    def _by_hand(self, stored: Mounted, robot: Array, on: On) -> Array:
        """What an error of the hand's pose does to the camera's twist (6, 6): nothing where both are on one side of the arm."""
        inverse = se3_inverse(stored.T)
        if stored.mount == "in_hand":
            return se3_adjoint(inverse) if on == "base" else np.zeros((6, 6))
        return np.zeros((6, 6)) if on == "base" else -se3_adjoint(inverse @ robot)

    def _seen_board(self, stored: Mounted, picture: Picture) -> Array:
        """T_camera_board (4, 4) of one picture alone; its points are in metres already."""
        view = BoardView(robot=picture.robot, points=picture.points, pixels=picture.pixels)
        pose = board_poses(pack([view]), [stored.camera])[0][0]
        if not np.isfinite(pose).all() or not sure_pose(stored.camera, pose, picture.points, picture.pixels):
            raise InputError(f"this picture of camera {stored.name} does not tell where the board is: look at it from nearer or aslant")
        return pose

    # ------------------------------------------------------------ from one watch to the next

    def remember(self) -> dict[str, Any]:
        """What was learnt of where boards are, JSON-able, so that a watch of tomorrow begins with it; only while nothing has moved."""
        size = self._hand.start
        return {
            "version": VERSION,
            "cameras": {m.name: m.hash for m in self.cameras.values()},
            "places": {on: place.tolist() for on, place in self._places.items()},
            "mean": self._mean[0, :size].tolist(),
            "covariance": self._covariance[0, :size, :size].tolist(),
        }

    def recall(self, told: Mapping[str, Any], where: str = "what is remembered") -> None:
        """Begin with what an earlier watch of the same cameras learnt.

        Raises:
            InputError: pictures were taken in already, or it is of other cameras.
            DataError: it is damaged.
        """
        if self.seen:
            raise InputError("what is remembered must be given before the first picture")
        if not isinstance(told, Mapping) or told.get("version") != VERSION:
            raise DataError(f"{where} is nothing that a watch remembers; remove it")
        cameras = {m.name: m.hash for m in self.cameras.values()}
        if told.get("cameras") != cameras:
            raise InputError(f"{where} is of cameras {told.get('cameras')}, watched are {cameras}: remove it after a new calibration")
        size = self._hand.start
        try:
            places = {str(on): np.array(place, dtype=float).reshape(4, 4) for on, place in told["places"].items()}
            mean = np.array(told["mean"], dtype=float).reshape(size)
            covariance = np.array(told["covariance"], dtype=float).reshape(size, size)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise DataError(f"{where} is damaged ({e}); remove it") from None
        if set(places) - set(self._board) or not all(np.isfinite(v).all() for v in (mean, covariance, *places.values())):
            raise DataError(f"{where} is damaged; remove it")
        self._places = places
        self._mean[0, :size], self._covariance[0, :size, :size] = mean, covariance
        for part in self._camera.values():
            self._covariance[0, part, part] += TOLERATED

    # ------------------------------------------------------------ the filters

    def _first_covariance(self, cameras: Sequence[Mounted], joint: Array | None) -> Array:
        """Of everything that is not known (n, n); boards of known places are kept in `_places`."""
        result = np.zeros((self._hand.stop, self._hand.stop))
        for part in self._board.values():
            result[part, part] = np.diag([ANYWHERE_M**2] * 3 + [ANYWHERE_RAD**2] * 3)
        for m in cameras:
            result[self._camera[m.name], self._camera[m.name]] = np.roll(m.covariance, (3, 3), (0, 1))
        if joint is not None:
            size = 6 * len(cameras) + 6
            if np.shape(joint) != (size, size) or len({m.mount for m in cameras}) > 1:
                raise InputError(f"a covariance {np.shape(joint)} does not fit {len(cameras)} cameras of one mount and a board")
            result[:size, :size] = joint
            self._places[USUAL[cameras[0].mount]] = cameras[0].Z
        for part in self._camera.values():
            result[part, part] += TOLERATED
        return result

    def _hypotheses(self, size: int) -> tuple[tuple[str, ...], Array]:
        """Names of what may move, and the covariance that a bump of it adds (hypotheses, sizes of bumps, n, n)."""
        ways = {f"camera {name}": np.eye(size)[:, part] for name, part in self._camera.items()}
        on_hand = any(m.mount == "in_hand" for m in self.cameras.values())
        self._board_names = {"base": "the board or the robot's base" if on_hand else "the board beside the robot"}
        self._board_names["hand"] = "the board on the hand"
        ways |= {self._board_names[on]: np.eye(size)[:, part] for on, part in self._board.items()}
        beside = [m for m in self.cameras.values() if m.mount == "to_hand"]
        if len(beside) > 1:  # of one alone it is the camera that seems to move
            base = np.zeros((size, 6))
            for m in beside:
                base[self._camera[m.name]] = se3_adjoint(se3_inverse(m.T))
            ways[BASE] = base
        bumps = [[way @ np.diag([m**2] * 3 + [rad**2] * 3) @ way.T for m, rad in BUMPS] for way in ways.values()]
        return tuple(ways), np.array(bumps)

    def _move_hand(self, robot: Array) -> None:
        """A hand that moved makes another error."""
        if self._last_hand is not None:
            moved = np.linalg.norm(robot[:3, 3] - self._last_hand[:3, 3])
            if moved < STILL_M and np.linalg.norm(so3_log(self._last_hand[:3, :3].T @ robot[:3, :3])) < STILL_RAD:
                return
        self._last_hand = np.array(robot, dtype=float)
        self._mean[:, self._hand] = 0.0
        self._covariance[:, self._hand, :] = 0.0
        self._covariance[:, :, self._hand] = 0.0
        self._covariance[:, self._hand, self._hand] = self._robot_noise

    def _branch(self) -> None:
        """Filters for bumps right before this picture; those of long ago are dropped, which only makes alarms rarer."""
        keep = (self._mount < 0) | (self._start == 0) | (self._start > self.seen - RECENT)
        may = np.array([i for i, name in enumerate(self.mounts) if name in self._seen_parts])  # what no picture showed tells nothing
        count = len(may) * len(BUMPS)
        bumps = self._bumps[may].reshape(count, *self._bumps.shape[2:])
        mean = np.repeat(self._mean[:1], count, 0)
        self._mean = np.concatenate([self._mean[keep], mean])
        self._origin = np.concatenate([self._origin[keep], mean])
        self._covariance = np.concatenate([self._covariance[keep], self._covariance[:1] + bumps])
        self._log = np.concatenate([self._log[keep], np.full(count, -np.log(count))])
        self._start = np.concatenate([self._start[keep], np.full(count, self.seen)])
        self._mount = np.concatenate([self._mount[keep], np.repeat(may, len(BUMPS))])

    def _update(self, by_state: Array, seen: Array) -> float:
        """Kalman's step of all filters on whitened measurements (m,); returns the first one's chance of such a picture."""
        across = self._covariance @ by_state.T
        spread = by_state @ across + np.eye(len(seen))
        off = seen - self._mean @ by_state.T
        weighted = np.linalg.solve(spread, off[..., None])[..., 0]
        square = np.sum(off * weighted, 1)
        log = -0.5 * (square + np.linalg.slogdet(spread)[1])
        self._mean = self._mean + np.einsum("bnm,bm->bn", across, weighted)
        smaller = self._covariance - across @ np.linalg.solve(spread, np.swapaxes(across, 1, 2))
        self._covariance = 0.5 * (smaller + np.swapaxes(smaller, 1, 2))
        self._log[1:] += log[1:] - log[0]
        return float(chi2.sf(square[0], len(seen)))

    def _drift(self, chance: float) -> Drift:
        if len(self._log) == 1:
            told = "no picture could be used yet"
            return Drift(
                holds=True, evidence=0.0, chance=chance, moved=(), likelihood={}, moved_m=0.0, moved_rad=0.0, since=0, told=told
            )  # fmt: skip
        logs, mounts = self._log[1:], self._mount[1:]
        total = float(np.logaddexp.reduce(logs))
        likelihood = {name: float(np.exp(np.logaddexp.reduce(logs[mounts == i]) - total)) for i, name in enumerate(self.mounts)}
        ranked = sorted(likelihood, key=lambda name: -likelihood[name])
        best = 1 + int(np.argmax(np.where(mounts == self.mounts.index(ranked[0]), logs, -np.inf)))
        change = (self._mean[best] - self._origin[best])[self._parts(ranked[0])]
        metres, radians = float(np.linalg.norm(change[:3])), float(np.linalg.norm(change[3:]))
        self._alarm = self._alarm or (total > np.log(self.limit) and (metres > WORTH_M or radians > WORTH_RAD))
        alike = self._alike(ranked[0])
        moved: tuple[str, ...] = tuple(name for name in ranked if (likelihood[name] > LIKELY or name in alike) and self._alarm)
        since = int(self._start[best])
        told = f"all is where it was, as far as {self.seen} pictures tell"
        if moved:
            by = f"has moved by about {1e3 * metres:.1f} mm, {np.rad2deg(radians):.2f} deg since picture {since}"
            more = "a second camera that sees the board" if alike else "pictures from elsewhere"
            why = f"{more} would tell which" if moved[1:] else _named(moved[0])
            told = f"{' or '.join(moved)} {by}; {why}"
        return Drift(
            holds=not self._alarm, evidence=float(np.exp(min(total, 700.0))), chance=chance, moved=moved, likelihood=likelihood,
            moved_m=metres, moved_rad=radians, since=since, told=told,
        )  # fmt: skip

    def _alike(self, name: str) -> tuple[str, ...]:
        """What no picture can tell from a mount: a camera and the board that stands before it alone."""
        for camera, on, still in self._pairs:
            both = (f"camera {camera}", self._board_names.get(on, ""))
            if still and name in both and sum(c == camera or o == on for c, o, _ in self._pairs) == 1:
                return both
        return ()

    def _parts(self, name: str) -> slice:
        named = {f"camera {camera}": part for camera, part in self._camera.items()}
        named |= {self._board_names[on]: part for on, part in self._board.items()}
        return named.get(name) or next(self._camera[m.name] for m in self.cameras.values() if m.mount == "to_hand")


def _named(mount: str) -> str:
    """What follows when one mount alone can have moved."""
    return "the mount of the camera, not of the board" if mount.startswith("camera") else "the cameras are where they were"
