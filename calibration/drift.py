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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from calibration.results import Mounted, mounted
from calibration.sighting import sight
from calibration.solve import Result
from calibration.views import View as BoardView
from calibration.views import board_poses, pack
from sinew.errors import InputError
from sinew.se3 import Array, se3_adjoint, se3_inverse, so3_log

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
    keypoints: bool = False
    """The points are keypoints of the robot's hand and not corners of the board."""


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
        at = 6 * len(cameras)
        mounts = sorted({m.mount for m in cameras})
        self._board = {mount: slice(at + 6 * i, at + 6 * i + 6) for i, mount in enumerate(mounts)}
        self._hand = slice(at + 6 * len(mounts), at + 6 * len(mounts) + 6)
        self._places: dict[str, Array] = {}
        start = self._first_covariance(cameras, covariance)
        self._robot_noise = np.diag([max(m.robot_sigma_m for m in cameras) ** 2] * 3 + [max(m.robot_sigma_rad for m in cameras) ** 2] * 3)
        self._last_hand: Array | None = None
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
        stored, place, by_hand, by_board = self._expected(picture)
        points = np.asarray(picture.points, dtype=float) * (1.0 if picture.keypoints else stored.scale)
        sigma = stored.pixel_sigma * (np.ones(len(points)) if picture.sigma is None else picture.sigma)
        found = sight(stored.camera, place, points, np.asarray(picture.pixels, dtype=float), sigma)
        if found is None:
            return self._drift(float("nan"))
        values, axes = np.linalg.eigh(found.information)
        told = values > 1e-9 * values[-1]
        root = np.sqrt(values[told])[:, None] * axes.T[told]
        by_state = np.zeros((len(root), self._hand.stop))
        by_state[:, self._camera[stored.name]] = root
        by_state[:, self._hand] = root @ by_hand
        if not picture.keypoints:
            by_state[:, self._board[stored.mount]] = root @ by_board
        self._move_hand(picture.robot)
        self._branch()
        chance = self._update(by_state, root @ found.twist)
        self.seen += 1
        return self._drift(chance)

    def _expected(self, picture: Picture) -> tuple[Mounted, Array, Array, Array]:
        """The camera, T_camera_points, and what errors of the robot and of the board's place do to the camera's twist (6, 6) each."""
        stored = self.cameras.get(picture.camera)
        if stored is None:
            raise InputError(f"camera {picture.camera!r} is not watched; watched are {', '.join(self.cameras)}")
        k = len(picture.points)
        if np.shape(picture.points) != (k, 3) or np.shape(picture.pixels) != (k, 2) or np.shape(picture.robot) != (4, 4):
            raise InputError(f"points {np.shape(picture.points)} and pixels {np.shape(picture.pixels)} do not fit together")
        if not np.isfinite(picture.robot).all():
            raise InputError("the robot's pose is not finite")
        inverse = se3_inverse(stored.T)
        in_hand = stored.mount == "in_hand"
        by_hand = se3_adjoint(inverse) if in_hand else -se3_adjoint(inverse @ picture.robot)
        if picture.keypoints:  # the hand's own points: a camera on the hand sees them stand still
            place = inverse if in_hand else inverse @ picture.robot
            return stored, place, 0.0 * by_hand if in_hand else by_hand, np.zeros((6, 6))
        middle = inverse @ (se3_inverse(picture.robot) if in_hand else picture.robot)
        if stored.mount not in self._places:
            self._places[stored.mount] = se3_inverse(middle) @ self._seen_board(stored, picture)
        place = middle @ self._places[stored.mount]
        return stored, place, by_hand, -se3_adjoint(place)

    def _seen_board(self, stored: Mounted, picture: Picture) -> Array:
        """T_camera_board (4, 4) of one picture alone."""
        view = BoardView(robot=picture.robot, points=picture.points * stored.scale, pixels=picture.pixels)
        pose = board_poses(pack([view]), [stored.camera])[0][0]
        if not np.isfinite(pose).all():
            raise InputError(f"the first picture of camera {stored.name} does not tell where the board is: give one with more corners")
        return pose

    def _first_covariance(self, cameras: Sequence[Mounted], joint: Array | None) -> Array:
        """Of everything that is not known (n, n); boards of known places are kept in `_places`."""
        result = np.zeros((self._hand.stop, self._hand.stop))
        anywhere = np.diag([ANYWHERE_M**2] * 3 + [ANYWHERE_RAD**2] * 3)
        for part in self._board.values():
            result[part, part] = anywhere
        for m in cameras:
            result[self._camera[m.name], self._camera[m.name]] = np.roll(m.covariance, (3, 3), (0, 1))
        if joint is not None:
            size = 6 * len(cameras) + 6
            if np.shape(joint) != (size, size) or len(self._board) > 1:
                raise InputError(f"a covariance {np.shape(joint)} does not fit {len(cameras)} cameras of one mount and a board")
            result[:size, :size] = joint
            self._places[cameras[0].mount] = cameras[0].Z
        for part in self._camera.values():
            result[part, part] += np.diag([TOLERATED_M**2] * 3 + [TOLERATED_RAD**2] * 3)
        return result

    def _hypotheses(self, size: int) -> tuple[tuple[str, ...], Array]:
        """Names of what may move, and the covariance that a bump of it adds (hypotheses, sizes of bumps, n, n)."""
        ways: dict[str, Array] = {}
        for name, part in self._camera.items():
            ways[f"camera {name}"] = np.eye(size)[:, part]
        boards = {"in_hand": "the board or the robot's base", "to_hand": "the board on the hand"}
        for mount, part in self._board.items():
            ways[boards[mount]] = np.eye(size)[:, part]
        beside = [m for m in self.cameras.values() if m.mount == "to_hand"]
        if len(beside) > 1:  # of one alone it is the camera that seems to move
            base = np.zeros((size, 6))
            for m in beside:
                base[self._camera[m.name]] = se3_adjoint(se3_inverse(m.T))
            ways["the robot's base or all cameras beside it"] = base
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
        count = int(np.prod(self._bumps.shape[:2]))
        bumps = self._bumps.reshape(count, *self._bumps.shape[2:])
        mean = np.repeat(self._mean[:1], count, 0)
        self._mean = np.concatenate([self._mean[keep], mean])
        self._origin = np.concatenate([self._origin[keep], mean])
        self._covariance = np.concatenate([self._covariance[keep], self._covariance[:1] + bumps])
        self._log = np.concatenate([self._log[keep], np.full(count, -np.log(count))])
        self._start = np.concatenate([self._start[keep], np.full(count, self.seen)])
        self._mount = np.concatenate([self._mount[keep], np.repeat(np.arange(len(self.mounts)), len(BUMPS))])

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
        self._alarm = self._alarm or total > np.log(self.limit)
        ranked = sorted(likelihood, key=lambda name: -likelihood[name])
        moved = tuple(name for name in ranked if likelihood[name] > LIKELY) if self._alarm else ()
        best = 1 + int(np.argmax(np.where(mounts == self.mounts.index(ranked[0]), logs, -np.inf)))
        change = (self._mean[best] - self._origin[best])[self._parts(ranked[0])]
        metres, radians = float(np.linalg.norm(change[:3])), float(np.linalg.norm(change[3:]))
        since = int(self._start[best])
        told = f"all is where it was, as far as {self.seen} pictures tell"
        if moved:
            told = f"{' or '.join(moved)} has moved by {1e3 * metres:.1f} mm and {np.rad2deg(radians):.2f} degrees since picture {since}"
        return Drift(
            holds=not self._alarm, evidence=float(np.exp(min(total, 700.0))), chance=chance, moved=moved, likelihood=likelihood,
            moved_m=metres, moved_rad=radians, since=since, told=told,
        )  # fmt: skip

    def _parts(self, name: str) -> slice:
        for camera, part in self._camera.items():
            if name == f"camera {camera}":
                return part
        if name.startswith("the board"):
            return self._board["to_hand" if name == "the board on the hand" else "in_hand"]
        return next(self._camera[m.name] for m in self.cameras.values() if m.mount == "to_hand")
