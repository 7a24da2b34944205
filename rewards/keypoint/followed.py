"""Objects followed in the pictures of calibrated cameras, in place of poses that somebody tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from rewards.files import RewardUnavailable, Situation
from rewards.keypoint.candidates import masks_by_colour
from rewards.keypoint.poses import Frames, Poses
from rewards.keypoint.tracking import PointTracker
from rewards.keypoint.views import View, triangulate


class FollowedPoses:
    """The tool as it is observed, and objects where two cameras see them: the middle of each is followed in both pictures, and lies where
    the rays meet. Turns are not followed: an object keeps the axes that it began with.

    Where the rays do not meet, or nothing of an object can be found again, nobody is sure and it stays where it was last seen. The last
    picture of an episode may be of the next one already, and is not looked at.

    Args:
        known: the tool, and objects at the beginning of an episode.
        situation: where pictures come from.

    Raises:
        RewardUnavailable: no calibrated cameras see the worlds.
    """

    def __init__(self, known: Poses, situation: Situation) -> None:
        if situation.watch is None:
            raise RewardUnavailable("objects are to be followed in pictures, and no two calibrated cameras that stand still see them")
        self.known, self.names, self._watch, self._say = known, known.names, situation.watch, situation.say
        self._found: dict[str, np.ndarray] = {}
        self._followed: list[dict[str, list[PointTracker]]] = [{} for _ in range(situation.num_envs)]
        self._lost = np.zeros(situation.num_envs, bool)
        self._said = False
        self.confidence = np.ones(situation.num_envs)
        """(N,) in [0, 1] how sure it is of each world, after the last step."""

    def frames(self, obs: Mapping[str, Tensor], rows: np.ndarray | None = None) -> Frames:
        """See `Poses`; objects are where they were seen last."""
        known = self.known.frames(obs, rows)
        return {**known, **{name: frame if rows is None else frame[:, rows] for name, frame in self._found.items()}}

    def begin(self, obs: Mapping[str, Tensor], rows: np.ndarray, followed: Sequence[str]) -> Frames:
        """See `Poses`."""
        frames = self.known.frames(obs, rows)
        for i, world in enumerate(rows):
            self.start(int(world), {name: frames[name][:, i] for name in followed}, self._watch(obs, int(world), True))
        return frames

    def start(self, world: int, frames: Mapping[str, np.ndarray], views: Sequence[View]) -> None:
        """Follow objects that begin at frames (9,) in views of that time, in one world."""
        self._followed[world], self._lost[world] = {}, False
        for name, frame in frames.items():
            whole = self._found.setdefault(name, np.zeros((9, len(self._lost)), np.float32))
            whole[:, world] = frame
            try:
                if len(views) < 2:
                    raise RewardUnavailable(f"{len(views)} calibrated camera sees {name}, and two are needed")
                self._followed[world][name] = [_tracker(view, frame[:3]) for view in views[:2]]
            except RewardUnavailable as problem:
                self._lost[world] = True
                if not self._said:
                    self._said = True
                    self._say(f"{problem}; the potential is held in such episodes, so that success alone tells there")

    def advance(self, obs: Mapping[str, Tensor], transition: Mapping[str, Tensor]) -> np.ndarray | None:
        """See `Poses`."""
        ended = transition["terminated"] | transition["truncated"]
        sure = np.ones(len(self._lost))
        for world, things in enumerate(self._followed):
            if self._lost[world] or (things and bool(ended[world])):
                sure[world] = 0.0
            elif things:
                views = self._watch(obs, world, False)
                sure[world] = min(self._seen(world, name, views) for name in things)
        self.confidence = sure
        return sure

    def _seen(self, world: int, name: str, views: Sequence[View]) -> float:
        """Look where an object is; how sure that is."""
        trackers = self._followed[world][name]
        (one, first), (two, second) = (tracker.update(view.image) for tracker, view in zip(trackers, views[:2], strict=True))
        try:
            point = triangulate(views[0], one, views[1], two)
        except RewardUnavailable:
            return 0.0
        if min(first, second) > 0:
            self._found[name][:3, world] = point
        return min(first, second)


def _tracker(view: View, point_m: np.ndarray) -> PointTracker:
    """Follows a point in the world from what is seen around it: its object, where the view or colours tell which pixels those are."""
    pixel = view.project(point_m)[0]
    if not np.isfinite(pixel).all():
        raise RewardUnavailable("a point that is to be followed is behind a camera")
    u, v = (int(np.clip(round(float(p)), 0, limit - 1)) for p, limit in zip(pixel, view.image.shape[1::-1], strict=True))
    masks = list(view.masks.values()) or masks_by_colour(view.image)
    return PointTracker(view.image, pixel, next((mask for mask in masks if mask[v, u]), None))
