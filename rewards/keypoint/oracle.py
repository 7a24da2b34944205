"""The answer of somebody who knows the simulation, in the words that a model would have to use: marks, tiles and heights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.keypoint.marks import tile_of
from rewards.keypoint.question import listed_marks
from rewards.keypoint.views import View


@dataclass(frozen=True, kw_only=True)
class KeypointTruth:
    """What is true of a scene; a `rewards.vlm.oracle.Truth`. It sees the marks where the question says that they are."""

    view: View
    """The first picture's camera; of the picture only its size counts."""
    path: Sequence[tuple[np.ndarray, str]]
    """Places (3,) of the function point after its start, metres in the world, and what they move with."""
    function_m: np.ndarray | None = None
    """(3,) its start; None where it is the tool."""
    grasp_m: np.ndarray | None = None
    """(3,) where the tool takes hold."""
    target_m: np.ndarray | None = None
    """(3,) a point of what the function point goes to."""
    approach: Sequence[np.ndarray] = ()
    """Places (3,) of the tool on its way."""
    second: View | None = None
    """The second picture's camera."""

    def __call__(self, text: str, images: Sequence[np.ndarray], schema: Mapping[str, Any] | None) -> dict[str, Any]:
        """Answer a question of `rewards.keypoint.question`."""
        if schema is None:
            raise ValueError("the oracle answers questions with a schema")
        points = {"grasp": self.grasp_m, "function": self.function_m, "target": self.target_m}
        marks, fields = listed_marks(text), schema["properties"]
        told: dict[str, Any] = {}
        for view, ending in ((self.view, ""), (self.second, "_2")):
            for name, point in points.items():
                if f"{name}{ending}" in fields and view is not None:
                    allowed = {n: marks[n] for n in fields[f"{name}{ending}"]["enum"] if n}
                    told[f"{name}{ending}"] = 0 if point is None else _nearest(view, point, allowed)
        told["approach"] = [self._spot(point, "start") for point in self.approach]
        told["path"] = [self._spot(point, of) for point, of in self.path]
        told["heights_cm"] = {name: 0.0 if point is None else _cm(point) for name, point in points.items()}
        return told

    def _spot(self, point: np.ndarray, of: str) -> dict[str, Any]:
        height, width = self.view.image.shape[:2]
        tile, across, up = tile_of(self.view.project(point)[0], width, height)
        return {"tile": tile, "across": round(across, 2), "up": round(up, 2), "height_cm": _cm(point), "of": of}


def _nearest(view: View, point: np.ndarray, marks: Mapping[int, tuple[float, float]]) -> int:
    pixel = view.project(point)[0]
    return min(marks, key=lambda n: float(np.hypot(*(np.array(marks[n]) - pixel))))


def _cm(point: np.ndarray) -> float:
    return round(100 * max(0.0, float(point[2])), 1)
