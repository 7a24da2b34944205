"""Follows a point of a rigid thing through pictures, also while it is hidden in part, and says how sure it is.

Source: KLT (Lucas, Kanade, Tomasi; Bouguet's pyramids), forward-backward check (Kalal 2010), and a similarity by RANSAC that repairs
what was lost from what was not; the recipe and its figures were measured on synthetic sequences (docs/rewards.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from rewards.files import RewardUnavailable

MARGIN_PX = 24
"""Kept around the points of the first picture, for the patches that are compared."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Settings of a tracker."""

    support: int = 60
    """Points that are followed beside the one that is wanted."""
    window_px: int = 21
    """Side of the patches that are compared."""
    levels: int = 3
    """Pyramid levels above the picture itself."""
    there_and_back_px: float = 1.0
    """A point that does not come back to where it was, to so much, is lost."""
    rigid_px: float = 2.0
    """A point farther than this from where the others say that it is, is lost."""
    fewest: int = 8
    """With fewer points left that agree, the thing counts as hidden and its point stays where it was last seen."""
    sure: float = 0.3
    """Share of the points from which the first way that was tried to find them is good enough."""


class PointTracker:
    """A point of a rigid thing, and the points around it that it moves with.

    Args:
        image: (H, W, 3) or (H, W) uint8, the first picture.
        point: (2,) pixel u, v.
        mask: (H, W) bool, the thing; None for what lies within `radius_px` of the point.
        radius_px: see `mask`.
        config: settings.

    Raises:
        RewardUnavailable: the point is outside the picture, or its thing has no texture to follow.
    """

    def __init__(
        self, image: np.ndarray, point: np.ndarray, mask: np.ndarray | None = None, radius_px: float = 40.0,
        config: TrackingConfig | None = None,
    ) -> None:  # fmt: skip
        self.config = config or TrackingConfig()
        self._gray = _gray(image)
        height, width = self._gray.shape
        self.point = np.asarray(point, dtype=np.float64)
        """(2,) where it is now."""
        if not (np.isfinite(self.point).all() and 0 <= self.point[0] < width and 0 <= self.point[1] < height):
            raise RewardUnavailable(f"the point at {self.point.round(1).tolist()} is outside the picture of {width} x {height}")
        v, u = np.mgrid[:height, :width]
        inside = np.hypot(u - self.point[0], v - self.point[1]) <= radius_px if mask is None else mask
        seen = cv2.goodFeaturesToTrack(
            self._gray, self.config.support, 0.01, 3, mask=inside.astype(np.uint8), blockSize=5, useHarrisDetector=False
        )
        found = np.zeros((0, 1, 2)) if seen is None else seen
        if len(found) < self.config.fewest:
            raise RewardUnavailable(
                f"there is too little texture around the point at {self.point.round().astype(int).tolist()} to follow it: "
                f"{len(found)} corners, {self.config.fewest} are needed"
            )
        self._model = found[:, 0].astype(np.float64)  # where the points are on the thing, in pixels of the first picture
        self._wanted = self.point.copy()
        low, high = self._model.min(0) - MARGIN_PX, self._model.max(0) + MARGIN_PX
        self._corner = np.clip(np.floor(low), 0, None)
        right = np.minimum(np.ceil(high) + 1, (width, height)).astype(int)
        left = self._corner.astype(int)
        self._reference = np.ascontiguousarray(self._gray[left[1] : right[1], left[0] : right[0]])
        self._motion = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        self.confidence = 1.0
        """Share of the points that agree on where the thing is."""

    def update(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """Go on to the next picture.

        Args:
            image: (H, W, 3) or (H, W) uint8, of the first one's size.

        Returns:
            (2,) pixel u, v, and the confidence in [0, 1], the share of its points that agree; 0 where the thing is hidden, and the
            pixel is where it was last seen.
        """
        gray = _gray(image)
        near, _ = self._fit(*self._followed(self._gray, gray, self._placed(), self.config.levels))
        best, agreeing = None, 0
        for guess in (near, self._motion):  # as it moved, and where it was
            for levels in (1, self.config.levels):  # coarse patches reach far, and are spoiled sooner by what hides the thing
                if guess is not None and agreeing < self.config.sure * len(self._model):
                    refined, count = self._refined(gray, guess, levels)
                    best, agreeing = (refined, count) if count > agreeing else (best, agreeing)
        self._gray = gray
        self.confidence = agreeing / len(self._model)
        if best is not None:
            self._motion = best
            self.point = _moved(best, self._wanted[None])[0]
        return self.point.copy(), self.confidence

    def _placed(self) -> np.ndarray:
        """(K, 2) where the points are thought to be, those that were lost as well."""
        return _moved(self._motion, self._model)

    def _refined(self, gray: np.ndarray, guess: np.ndarray, levels: int) -> tuple[np.ndarray | None, int]:
        """The motion, from points compared with how they looked in the first picture, so that nothing drifts; and how many agree."""
        height, width = self._reference.shape
        shift = np.hstack((guess[:, :2], _moved(guess, self._corner[None]).T))
        seen = cv2.warpAffine(gray, shift, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
        good, there = self._followed(self._reference, seen, self._model - self._corner, levels)
        return self._fit(good, _moved(shift, there))

    def _followed(self, before: np.ndarray, after: np.ndarray, points: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
        """Which points (K, 2) of one picture were found in another (K,) bool, there and back again, and where (K, 2)."""
        config, start = self.config, points.astype(np.float32)[:, None]
        options: dict[str, Any] = {
            "winSize": (config.window_px, config.window_px), "maxLevel": levels,
            "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.03),
        }  # fmt: skip
        now, there, _ = cv2.calcOpticalFlowPyrLK(before, after, start, None, **options)  # type: ignore[call-overload]
        back, again, _ = cv2.calcOpticalFlowPyrLK(after, before, now, start.copy(), flags=cv2.OPTFLOW_USE_INITIAL_FLOW, **options)
        returned = np.linalg.norm((back - start)[:, 0], axis=1) < config.there_and_back_px
        inside = ((now[:, 0] >= 0) & (now[:, 0] < (after.shape[1], after.shape[0]))).all(1)
        return (there[:, 0] == 1) & (again[:, 0] == 1) & returned & inside, now[:, 0].astype(np.float64)

    def _fit(self, good: np.ndarray, now: np.ndarray) -> tuple[np.ndarray | None, int]:
        """The similarity (2, 3) from the first picture that most points agree on, and how many do."""
        if good.sum() < self.config.fewest:
            return None, 0
        cv2.setRNGSeed(0)
        motion, inliers = cv2.estimateAffinePartial2D(
            self._model[good], now[good], method=cv2.RANSAC, ransacReprojThreshold=self.config.rigid_px, maxIters=500, confidence=0.99
        )
        agreeing = 0 if inliers is None else int(inliers.sum())
        if motion is None or agreeing < self.config.fewest or not 0.2 < np.linalg.norm(motion[:, 0]) < 5:
            return None, 0
        return motion, agreeing


def _moved(motion: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ motion[:, :2].T + motion[:, 2]


def _gray(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
