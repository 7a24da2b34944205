"""Candidate keypoints: what in a picture may be named, so that a model need not give coordinates.

Source: MOKA's candidates, farthest points on the contour of an object's mask and its centre.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from rewards.files import RewardUnavailable
from rewards.keypoint.views import View

ON_CONTOUR = 5
"""Points on the contour of each object, beside its centre."""
INSIDE_PX = 3
"""Contours are taken so far inside, where depth is the object's own."""
SMALLEST, LARGEST = 2e-4, 0.12
"""Shares of the picture that an object found by its colour takes."""
COLOURS, COMMON = 8, 0.05
"""Colours that a picture is reduced to, and the share of it from which one is of the background."""
LIGHTNESS, DIFFERENT = 0.3, 14.0
"""Weight of lightness beside hue in CIELAB, and how far from every common colour a thing is."""
MAX_OBJECTS = 8


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A point that may be named."""

    number: int
    """Its mark, from 1 on."""
    pixel: tuple[float, float]
    """u to the right, v down."""
    object: str = ""
    """What it is on, where that is known by name."""
    centre: bool = False
    """Whether it stands for the middle of its object, and not for the place on the surface."""
    point_m: tuple[float, float, float] | None = None
    """In the world, where depth tells."""


def candidates(view: View, first: int = 1) -> list[Candidate]:
    """Points of a view: of its masks, or of what stands out by colour where there are none.

    Args:
        view: what is seen.
        first: number of the first mark.

    Raises:
        RewardUnavailable: nothing stands out.
    """
    named = {name: mask for name, mask in view.masks.items() if mask.sum() >= 12}
    masks: Mapping[str, np.ndarray] = named or {f"?{i}": mask for i, mask in enumerate(masks_by_colour(view.image))}
    if not masks:
        raise RewardUnavailable("nothing in the picture stands out from what it lies on, so that there are no points to name")
    found: list[Candidate] = []
    for name, mask in masks.items():
        known = name if name in named else ""
        centre, contour = _points(mask)
        for i, pixel in enumerate([centre, *contour]):
            point = _middle(view, mask) if i == 0 else view.at_depth(pixel)
            place = None if point is None else (float(point[0]), float(point[1]), float(point[2]))
            pair = (float(pixel[0]), float(pixel[1]))
            found.append(Candidate(number=first + len(found), pixel=pair, object=known, centre=i == 0, point_m=place))
    return found


def _points(mask: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The pixel of a mask that is nearest to its centre, and pixels far apart on its contour."""
    inner = cv2.erode(np.pad(mask, 1).astype(np.uint8), np.ones((3, 3), np.uint8), iterations=INSIDE_PX)[1:-1, 1:-1]
    inner = inner if inner.sum() >= 8 else mask.astype(np.uint8)
    v, u = np.nonzero(inner)
    pixels = np.stack((u, v), 1).astype(np.float64)
    centre = pixels[np.linalg.norm(pixels - pixels.mean(0), axis=1).argmin()]
    outlines, _ = cv2.findContours(inner, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(outlines, key=len)[:, 0].astype(np.float64)
    return centre, farthest_points(outline, ON_CONTOUR, centre)


def farthest_points(points: np.ndarray, count: int, seed: np.ndarray) -> list[np.ndarray]:
    """At most `count` of points (K, 2), each the farthest from those before it and from `seed`; none twice."""
    chosen: list[np.ndarray] = []
    distance = np.linalg.norm(points - seed, axis=1)
    while len(chosen) < count and distance.max() > 1.0:
        chosen.append(points[distance.argmax()])
        distance = np.minimum(distance, np.linalg.norm(points - chosen[-1], axis=1))
    return chosen


def _middle(view: View, mask: np.ndarray) -> np.ndarray | None:
    """(3,) middle of the box around what is seen of an object, which is the object's own where it is seen from above and aside."""
    if view.depth_m is None or view.camera is None:
        return None
    v, u = np.nonzero(mask)
    depth = view.depth_m[v, u].astype(np.float64)
    near = np.abs(depth - np.median(depth)) < 0.3
    if not near.any():
        return None
    rays = np.stack((u, v, np.ones_like(u)), 1)[near] @ np.linalg.inv(view.camera.matrix).T * depth[near, None]
    points = rays @ view.camera.T_world_camera[:3, :3].T + view.camera.T_world_camera[:3, 3]
    low, high = np.percentile(points, (0.5, 99.5), axis=0)
    return (low + high) / 2


def masks_by_colour(image: np.ndarray) -> list[np.ndarray]:
    """Masks (H, W) bool of what differs in colour from all that covers much of the picture; what differs most comes first.

    Regions that are too small or too large or cut off by the border are left out. Lightness counts little, for shading changes it, and
    the faces of a thing belong together; where hue tells nothing it counts in full.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    return _unlike_the_rest(image, LIGHTNESS) or _unlike_the_rest(image, 1.0)


def _unlike_the_rest(image: np.ndarray, lightness: float) -> list[np.ndarray]:
    height, width = image.shape[:2]
    lab = cv2.cvtColor(cv2.bilateralFilter(image, 7, 30, 7), cv2.COLOR_RGB2LAB).astype(np.float32)
    pixels = (lab * (lightness, 1.0, 1.0)).astype(np.float32).reshape(-1, 3)
    sample = pixels[np.random.default_rng(0).permutation(len(pixels))[:4000]]
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 0.5)
    cv2.setRNGSeed(0)
    _, label, centres = cv2.kmeans(sample, COLOURS, None, stop, 3, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    share = np.bincount(label.ravel(), minlength=COLOURS) / len(sample)
    common = centres[share >= min(COMMON, share.max())]
    unlike = np.linalg.norm(pixels[:, None] - common[None], axis=2).min(1).reshape(height, width)
    clean = cv2.morphologyEx((unlike > DIFFERENT).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(clean)
    found: list[tuple[float, np.ndarray]] = []
    for i in range(1, count):
        x, y, w, h, area = stats[i]
        inside = x > 0 and y > 0 and x + w < width and y + h < height
        if inside and SMALLEST * height * width <= area <= LARGEST * height * width:
            mask = parts == i
            found.append((float(unlike[mask].mean()), mask))
    return [mask for _, mask in sorted(found, key=lambda each: -each[0])[:MAX_OBJECTS]]
