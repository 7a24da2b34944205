"""From pictures and a sentence to a keypoint reward: ask a model once, and lift what it names to metres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.files import RewardUnavailable
from rewards.keypoint.candidates import Candidate, candidates
from rewards.keypoint.marks import COLUMNS, marked, tile_pixel
from rewards.keypoint.question import STARTS, WORLD_PLACE, Answer, Spot, parse, question, schema
from rewards.keypoint.settings import TOOL, WORLD, KeypointSettings, Place
from rewards.keypoint.views import View, triangulate
from rewards.vlm import VLM, VLMReply

SNAP_TILES = 0.25
"""A place this near to straight above or below the start or target is meant to be there: models are no better at tiles."""
SAME_M = 2e-3
"""Places nearer to each other are one."""
THING = "thing"
"""Frame of what the function point is on, where somebody will follow it: at that point as it was named, along the world's axes."""


@dataclass(frozen=True)
class Proposal:
    """What came of a question."""

    settings: KeypointSettings
    reply: VLMReply
    answer: Answer
    marks: Sequence[Candidate]
    pictures: Sequence[np.ndarray]
    """As the model was shown them."""
    points_m: Mapping[str, np.ndarray]
    """"grasp", "function", "target" (3,) and "approach", "path" (K, 3), metres in the world."""


def propose(
    vlm: VLM, task: str, view: View, second: View | None = None, *, poses: Mapping[str, np.ndarray] | None = None,
    seed: int = 0, timeout_s: float = 60.0, follow: bool = False,
) -> Proposal:  # fmt: skip
    """Ask once.

    Points are lifted by depth where the view has it, by both views where the second is calibrated too, and else by the heights that
    the model tells. What is on an object whose pose is known keeps its place on it.

    Args:
        vlm: answers.
        task: a sentence.
        view: what tiles and marks are of.
        second: the same scene from aside.
        poses: {name: (4, 4)} in the world of the objects in the view's masks, and of "tool".
        seed: of the model's sampling.
        timeout_s: for the answer.
        follow: whether somebody follows what the function point is on, so that it is a frame of its own.

    Raises:
        RewardUnavailable: no answer, or none that means a path in reach.
    """
    view.calibrated()
    marks = candidates(view)
    named_twice = view.depth_m is None and second is not None and second.camera is not None
    others = candidates(second, first=len(marks) + 1) if second is not None and named_twice else []
    pictures = [marked(view.image, marks)] + ([] if second is None else [marked(second.image, others)])
    text = question(task, marks, others, second is not None)
    reply = vlm.chat(text, pictures, schema=schema(marks, others), seed=seed, max_tokens=1500, timeout_s=timeout_s)
    answer = parse(reply.json)
    lifted = _Lifted(answer, view, second if named_twice else None, [*marks, *others], poses or {}, follow)
    return Proposal(lifted.settings(), reply, answer, marks, pictures, lifted.points())


class _Lifted:
    """An answer in metres."""

    def __init__(
        self, answer: Answer, view: View, second: View | None, marks: Sequence[Candidate], poses: Mapping[str, np.ndarray],
        follow: bool,
    ) -> None:  # fmt: skip
        self.answer, self.view, self.second, self.poses = answer, view, second, dict(poses)
        self.mark = {m.number: m for m in marks}
        self.place = {name: self._named(name) for name in ("grasp", "function", "target")}
        start = self.place["function"]
        if start is None and TOOL not in poses:
            raise RewardUnavailable("the answer names no point that has to get somewhere, and where the tool is is not known")
        self.start = poses[TOOL][:3, 3] if start is None else start
        if follow and start is not None:
            self.poses[THING] = np.eye(4)
            self.poses[THING][:3, 3] = start
        self.approach = [self._spot(s, ("grasp",)) for s in answer.approach] if self.place["grasp"] is not None else []
        self.path = [self._spot(s, STARTS[:2] if s.of == WORLD_PLACE else (s.of,)) for s in answer.path]
        if not self.path and self.place["target"] is not None:
            self.path = [(self.place["target"], "target")]
        self.path = _apart(self.path, self.start)
        if not self.path:
            raise RewardUnavailable("the answer tells no way that the function point has to go")

    def _named(self, name: str) -> np.ndarray | None:
        """(3,) where a named mark is; None where none is named."""
        number = self.answer.marks[name]
        if not number:
            return None
        mark = self.mark[number]
        if mark.point_m is not None:
            return np.array(mark.point_m)
        if self.second is not None:
            other = self.answer.marks[f"{name}_2"]
            if other:
                return triangulate(self.view, np.array(mark.pixel), self.second, np.array(self.mark[other].pixel))
        return self.view.on_plane(np.array(mark.pixel), self.answer.heights_m[name])

    def _spot(self, spot: Spot, uprights: Sequence[str]) -> tuple[np.ndarray, str]:
        """Where a place is (3,), and what it moves with; straight above one of `uprights` where it is nearly so."""
        height_m, (rows, width) = spot.height_cm / 100, self.view.image.shape[:2]
        pixel = tile_pixel(spot.tile, spot.across, spot.up, width, rows)
        feet = {"start": self.start, "grasp": self.place["grasp"], "target": self.place["target"]}
        for foot in (feet[name] for name in uprights):
            if foot is None:
                continue
            above = np.array([foot[0], foot[1], height_m])
            there = self.view.project(above)[0]
            if np.abs((there - pixel) / np.array([width, rows])).max() * len(COLUMNS) <= SNAP_TILES:
                return above, spot.of
        return self.view.on_plane(pixel, height_m), spot.of

    def points(self) -> dict[str, np.ndarray]:
        named = {name: place for name, place in self.place.items() if place is not None}
        ways = {"approach": [p for p, _ in self.approach], "path": [self.start, *(p for p, _ in self.path)]}
        return {**named, **{name: np.reshape(way, (-1, 3)) for name, way in ways.items()}}

    def settings(self) -> KeypointSettings:
        """The answer as a reward; each place in the frame of what it moves with.

        Where nobody will tell where the thing is that the function point is on, the tool stands for what it holds: its way goes on from
        the grasp as the function point's would.
        """
        own = self._object("function") if self.place["function"] is not None else TOOL
        frames = {"start": own, "target": self._object("target"), WORLD_PLACE: WORLD}
        grasp = self.place["grasp"]
        if own == WORLD:
            hold = self.start if grasp is None else grasp
            way = [*(p for p, _ in self.approach), hold, *(p - self.start + hold for p, _ in self.path)]
            return KeypointSettings(function=Place(offset_m=(0.0, 0.0, 0.0), object=TOOL), waypoints=tuple(self._in(p, WORLD) for p in way))
        held = self._object("grasp")
        return KeypointSettings(
            function=self._in(self.start, own),
            waypoints=tuple(self._in(point, frames[of]) for point, of in self.path),
            grasp=None if grasp is None else self._in(grasp, held),
            approach=tuple(self._in(point, held) for point, _ in self.approach),
        )

    def _object(self, name: str) -> str:
        """The object that a named mark is on, where its pose is known; else nothing."""
        number, moved = self.answer.marks[name], self.answer.marks["function"]
        on = self.mark[number].object if number else WORLD
        if THING in self.poses and number and (name == "function" or (name == "grasp" and on == self.mark[moved].object)):
            return THING
        return on if on in self.poses else WORLD

    def _in(self, point: np.ndarray, frame: str) -> Place:
        """A world point in a frame."""
        offset = point
        if frame != WORLD:
            offset = self.poses[frame][:3, :3].T @ (point - self.poses[frame][:3, 3])
        x, y, z = (round(float(v), 5) for v in offset)
        return Place(offset_m=(x, y, z), object=frame)


def _apart(path: list[tuple[np.ndarray, str]], start: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """The places of a path without those that are where the one before is."""
    kept: list[tuple[np.ndarray, str]] = []
    for point, of in path:
        before = kept[-1][0] if kept else start
        if np.linalg.norm(point - before) > SAME_M:
            kept.append((point, of))
    return kept
