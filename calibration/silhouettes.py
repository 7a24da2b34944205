"""Fitting a robot's drawn body to its masks in pictures of a camera beside it: draw, match outlines, take a Gauss-Newton step, again.

Every point of the drawn rim is matched with the nearest point of the mask's outline whose normal points the same way; only the distance
along the normal counts, since a rim slides on round links. Sought are the camera's pose, how much too large the masks are (segmenters
bleed), and at each view what the joints were off. What fits nothing loses its weight, as the width within which matches count shrinks.
Sources: Drummond and Cipolla 2002 (rims and normals); Lensch et al. 2001 (silhouettes); Geman and McClure 1987.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import KDTree

from calibration.body import Body, Outline, Rim, drawing_lens, outline, rim
from calibration.camera import Camera
from calibration.joint_noise import Levels, Rows, alike, cautious, estimate_levels, freedom, marginal, normals, scatter, solve
from sinew.se3 import Array, se3_exp, se3_inverse, se3_log, so3_hat

TURN_PX = 12.0
"""Outlines whose normals differ by one radian count as this far apart."""
BLEED_PX = 3.0
"""Masks may be too large or too small by this much, one standard deviation, before anything is seen."""
FIRST = Levels(1.0, float(np.deg2rad(0.1)))
OUTLIER = 3.5
"""Matches farther apart than this many standard deviations are not used in the end."""
GOOD_PART, GOOD_OVERLAP = 0.5, 0.4
"""A view of whose rim less than this fits, or whose mask overlaps the drawn body by less, is cast out."""
CONVERGED = 0.05
"""In standard deviations."""
ROUGH_PX = 0.3
"""Masks are made of whole pixels: where one ends is not known better than the standard deviation of that."""
FARTHEST_RAD = 0.2
"""No joint is off by more."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One view: where the joints were, and which pixels are the robot's."""

    joints: Array
    """(J,) rad, or m where they slide."""
    mask: np.ndarray
    """(height, width) bool."""
    name: str


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """A camera's pose at which the drawn body fits the masks."""

    T: Array
    """T_base_camera (4, 4)."""
    bleed_px: float
    """How much too large the masks are."""
    joint_errors: Array
    """(V, J)."""
    levels: Levels
    alike: float
    """Neighbours along an outline that count as one."""
    scatter: float
    """Factor of variances by which views contradict one another more than all that explains."""
    information: Array
    """(V, 7, 7) that each view gives of a twist of the camera in its own frame (m, rad) and the bleeding; 0 of views not used."""
    fit: Array
    """(V,) part of each view's rim that fits."""
    iou: Array
    """(V,) drawn body and mask: what they share over what either has."""
    rows: tuple[Rows, ...]
    used: np.ndarray
    """(V,) bool."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Where the camera should be."""

    T: Array
    """T_base_camera (4, 4)."""
    sigma_m: float = 0.01
    sigma_rad: float = float(np.deg2rad(3.0))

    @property
    def precision(self) -> Array:
        """Of a twist in the camera's frame (6, 6)."""
        return np.diag([self.sigma_m**-2.0] * 3 + [self.sigma_rad**-2.0] * 3)


class Silhouettes:
    """Masks of one camera, with the body that is drawn to match them."""

    def __init__(self, body: Body, looks: Sequence[Look], camera: Camera) -> None:
        self.body, self.looks, self.camera = body, tuple(looks), camera
        self.outlines = [outline(look.mask) for look in looks]
        self._trees = [KDTree(np.concatenate([o.pixels, TURN_PX * o.normals], 1)) if len(o.pixels) else None for o in self.outlines]
        self._masks: dict[float, tuple[np.ndarray, list[np.ndarray]]] = {}

    def rim_of(self, view: int, T: Array, joints: Array, scale: float = 1.0) -> tuple[Rim, float]:
        """The drawn rim of a view, and how far the drawn body and the mask overlap (0 to 1)."""
        lens = drawing_lens(self.camera, scale)
        drawing = self.body.draw(joints, T, lens)
        inside, masks = self._at(scale)
        drawn, mask = drawing.mask & inside, masks[view]
        overlap = int((drawn & mask).sum()) / max(int((drawn | mask).sum()), 1)
        return rim(drawing, lens, self.camera, T, scale), overlap

    def match(self, view: int, drawn: Rim) -> Outline | None:
        """The point of the mask's outline for each point of a drawn rim; None where either has none."""
        tree = self._trees[view]
        if tree is None or not len(drawn.pixels):
            return None
        _, at = tree.query(np.concatenate([drawn.pixels, TURN_PX * drawn.normals], 1))
        o = self.outlines[view]
        return Outline(o.pixels[at], o.normals[at], o.at[at], o.line[at])

    def rows(self, view: int, T: Array, joint_errors: Array, bleed_px: float, width_px: float, scale: float) -> tuple[Rows, float]:
        """The linear model of a view, and how far drawn body and mask overlap.

        Args:
            view: which.
            T: T_base_camera (4, 4).
            joint_errors: (J,).
            bleed_px: how much too large the masks are.
            width_px: matches farther apart than about this hardly count.
            scale: how finely is drawn.
        """
        joints = self.looks[view].joints + joint_errors
        drawn, overlap = self.rim_of(view, T, joints, scale)
        seen, count = self.match(view, drawn), len(self.body.joints)
        if seen is None:
            return Rows(np.zeros(0), np.zeros((0, 7)), np.zeros((0, count)), np.zeros(0), np.zeros(0, dtype=int)), overlap
        e, by_shared, by_joints = linearise(self.body, drawn, seen, self.camera, T, joints)
        e = e - bleed_px
        alike_turned = np.sum(drawn.normals * seen.normals, 1) > 0.5
        weight = np.where(alike_turned, (1 + (e / width_px) ** 2) ** -2.0, 0.0)
        return Rows(e + by_joints @ joint_errors, by_shared, by_joints, weight, drawn.line), overlap

    def _at(self, scale: float) -> tuple[np.ndarray, list[np.ndarray]]:
        """As drawings of that scale have them: which pixels are in the picture, and the masks."""
        if scale not in self._masks:
            import cv2

            lens = drawing_lens(self.camera, scale)
            grid = np.stack(np.meshgrid(np.arange(lens.width, dtype=float), np.arange(lens.height, dtype=float)), -1)
            rays = np.concatenate([(grid - np.array(lens.centre)) / np.array(lens.focal), np.ones((*grid.shape[:2], 1))], -1)
            at = np.nan_to_num(self.camera.project(rays), nan=-9.0).astype(np.float32)
            x, y = at[..., 0], at[..., 1]
            masks = [cv2.remap(v.mask.astype(np.uint8), x, y, cv2.INTER_NEAREST, borderValue=(0,)) > 0 for v in self.looks]
            size = np.array([self.camera.width, self.camera.height])
            self._masks[scale] = np.asarray(((at > -0.5) & (at < size - 0.5)).all(-1)), masks
        return self._masks[scale]


def linearise(body: Body, drawn: Rim, seen: Outline, camera: Camera, T: Array, joints: Array) -> tuple[Array, Array, Array]:
    """How far outlines are apart along the normal, and what changes that.

    Returns:
        e (n,) px, positive where the mask reaches farther out; its share of a twist of the camera in its own frame and of the bleeding
        (n, 7), and of the joints (n, J).
    """
    e = np.sum(drawn.normals * (seen.pixels - drawn.pixels), 1)
    by_point = np.einsum("ni,nij->nj", drawn.normals, camera.project_with_jacobians(drawn.in_camera)[1])
    turned = np.einsum("ni,nij->nj", by_point, so3_hat(drawn.in_camera))
    by_shared = np.concatenate([-by_point, turned, np.ones((len(e), 1))], 1)
    in_base = by_point @ T[:3, :3].T
    by_joints = np.einsum("ni,nij->nj", in_base, body.jacobians(joints, drawn.points, drawn.parts))
    return e, by_shared, by_joints


def approach(s: Silhouettes, T: Array, *, scale: float, widths_px: Sequence[float], prior: Prior | None = None) -> tuple[Array, float]:
    """Come nearer from a rough pose: steps with the joints as told, matches counting within a shrinking width.

    Returns:
        T_base_camera (4, 4), and how far drawn bodies and masks overlap in the median view (0 to 1) before the last step.
    """
    bleed, overlap = 0.0, 0.0
    for width in widths_px:
        views = [s.rows(v, T, np.zeros(len(s.body.joints)), bleed, width, scale) for v in range(len(s.looks))]
        overlap = float(np.median([o for _, o in views]))
        step, _, _ = solve(normals([r for r, _ in views], 10.0), Levels(width / 2, FIRST.joint_rad), *_known(prior, T, bleed))
        step[:6] *= min(1.0, 0.3 / max(float(np.abs(step[:6]).max()), 1e-12))
        T, bleed = T @ se3_exp(step[:6]), bleed + float(step[6])
    return T, overlap


def align(s: Silhouettes, T: Array, *, scale: float = 1.0, prior: Prior | None = None, steps: int = 12) -> Aligned:
    """Fit from a pose that is wrong by a few pixels; noise levels, joint errors and bleeding are estimated as well.

    Args:
        s: masks and body.
        T: T_base_camera (4, 4) to begin with.
        scale: how finely is drawn in the end; half as finely before that.
        prior: where the camera should be.
        steps: at most.
    """
    joints, bleed, levels, count = np.zeros((len(s.looks), len(s.body.joints))), 0.0, FIRST, 10.0
    for turn in range(steps):
        width = max(16.0 / 2**turn, 2.0, OUTLIER * levels.pixel)
        rows, fit, iou = _linear(s, T, joints, bleed, width, scale if turn > 5 else scale / 2, soft=turn <= 3)
        used = (fit >= GOOD_PART) & (iou >= GOOD_OVERLAP) if turn >= 2 else np.ones(len(rows), dtype=bool)
        n, (known, away) = normals(_only(rows, used), count), _known(prior, T, bleed)
        if turn >= 2:
            levels = estimate_levels(n, known, away, levels)
            levels = replace(levels, pixel=max(levels.pixel, ROUGH_PX))
        step, joints, total = solve(n, levels, known, away)
        joints = np.clip(joints, -FARTHEST_RAD, FARTHEST_RAD)
        left = [r.e - r.shared @ step - r.joints @ j for r, j in zip(rows, joints, strict=True)]
        told = max(float(n.count.sum()), 1.0)  # what was fitted took away part of what is alike
        count = alike(_only(rows, used), left) * told / max(told - freedom(n, levels), 0.5 * told)
        T, bleed = T @ se3_exp(step[:6]), bleed + float(step[6])
        if turn >= 7 and float(np.sqrt(step @ total @ step)) < CONVERGED:
            break
    rows, fit, iou = _linear(s, T, joints, bleed, max(2.0, OUTLIER * levels.pixel), scale, soft=False)
    used = (fit >= GOOD_PART) & (iou >= GOOD_OVERLAP)
    n, (known, away) = normals(_only(rows, used), count), _known(prior, T, bleed)
    levels = cautious(n, known, away, levels)
    return Aligned(
        T=T, bleed_px=bleed, joint_errors=joints, levels=levels, alike=count, scatter=scatter(n, levels, np.zeros(7)),
        information=marginal(n, levels)[0], fit=fit, iou=iou, rows=tuple(_only(rows, used)), used=used,
    )  # fmt: skip


def _linear(
    s: Silhouettes, T: Array, joints: Array, bleed: float, width: float, scale: float, soft: bool
) -> tuple[list[Rows], Array, Array]:
    """The linear models of all views; the part of each rim that fits (V,); overlaps (V,)."""
    made = [s.rows(v, T, q, bleed, width, scale) for v, q in enumerate(joints)]
    rows, fit = [], np.zeros(len(made))
    for v, (r, _) in enumerate(made):
        good = (np.abs(r.e - r.joints @ joints[v]) < width) & (r.weight > 0)
        fit[v] = good.mean() if len(good) else 0.0
        rows.append(replace(r, weight=np.where(good, r.weight if soft else 1.0, 0.0)))
    return rows, fit, np.array([o for _, o in made])


def _only(rows: Sequence[Rows], used: np.ndarray) -> list[Rows]:
    return [r if u else replace(r, weight=np.zeros_like(r.weight)) for r, u in zip(rows, used, strict=True)]


def _known(prior: Prior | None, T: Array, bleed_px: float) -> tuple[Array, Array]:
    """Precision (7, 7) of what was known before of pose and bleeding, and how far the estimate is from it (7,)."""
    known, away = np.zeros((7, 7)), np.zeros(7)
    known[6, 6], away[6] = BLEED_PX**-2.0, bleed_px
    if prior is not None:
        known[:6, :6], away[:6] = prior.precision, se3_log(se3_inverse(prior.T) @ T)
    return known, away
