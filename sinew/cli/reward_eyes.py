"""What a reward is shown: pictures of cameras that stand still and whose place is known, and poses as far as they are observed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from calibration.camera import Camera
    from calibration.results import Mounted
    from rewards.files import CameraView
    from rewards.keypoint.views import Scene, View
    from sinew.specs import ObservationSpec

Picture = Callable[[Mapping[str, Any], str, int], np.ndarray]
"""(observations of all worlds, camera, world) → (H, W, 3) uint8."""


@dataclass(frozen=True)
class Eye:
    """A camera that stands still."""

    view: CameraView
    lens: Camera | None = None
    """Of its pictures, where they have to be straightened."""

    def straight(self, picture: np.ndarray) -> np.ndarray:
        """A picture as `view` would have taken it."""
        return picture if self.lens is None else undistorted(picture, self.lens)


def undistorted(picture: np.ndarray, lens: Camera) -> np.ndarray:
    """The picture (H, W, 3) that a lens without distortion would have taken."""
    import cv2

    if not any(lens.distortion):
        return picture
    if lens.model == "fisheye":
        return cv2.fisheye.undistortImage(picture, lens.matrix, np.asarray(lens.distortion), Knew=lens.matrix)
    return cv2.undistort(picture, lens.matrix, np.asarray(lens.distortion))


def calibrated(cameras: Sequence[Mounted], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Eye]:
    """The calibrated cameras that stand still, for pictures of sizes {name: (height, width)}; of others, and of another shape, none."""
    from rewards.files import CameraView

    found: dict[str, Eye] = {}
    for camera in cameras:
        height, width = sizes.get(camera.name, (0, 0))[:2]
        lens = camera.camera
        if camera.mount != "to_hand" or not width or abs(lens.width * height - width * lens.height) > 0.01 * lens.width * height:
            continue
        scale = width / lens.width
        cx, cy = ((c + 0.5) * scale - 0.5 for c in lens.centre)  # the middle of the first pixel is 0
        lens = replace(lens, width=width, height=height, focal=(lens.focal[0] * scale, lens.focal[1] * scale), centre=(cx, cy))
        view = CameraView(matrix=lens.matrix, T_world_camera=np.asarray(camera.T, dtype=float), width=width, height=height)
        found[camera.name] = Eye(view, lens)
    return found


class Eyes:
    """Looks for a reward; see `look` and `watch` of `rewards.files.Situation`.

    Args:
        spec: of the observations.
        cameras: by name; the first one is what marks are drawn on.
        objects: whose poses are observed.
        picture: gives pictures as they were taken.
    """

    def __init__(self, spec: ObservationSpec, cameras: Mapping[str, Eye], objects: tuple[str, ...], picture: Picture) -> None:
        self.spec, self.cameras, self.objects, self._picture = spec, cameras, objects, picture

    @property
    def views(self) -> dict[str, CameraView]:
        """Where the cameras are."""
        return {name: eye.view for name, eye in self.cameras.items()}

    def told(self) -> dict[str, Any]:
        """The fields of a `Situation` that are about seeing."""
        look, watch = (self.look if self.cameras else None), (self.watch if len(self.cameras) > 1 else None)
        return {"cameras": self.views, "look": look, "watch": watch}

    def look(self, obs: Mapping[str, Any], world: int) -> Scene:
        """A world as its episode begins."""
        from rewards.keypoint.views import Scene

        first, *others = self.watch(obs, world, True)
        return Scene(view=first, second=others[0] if others else None, poses=self._poses(obs, world))

    def watch(self, obs: Mapping[str, Any], world: int, first: bool) -> list[View]:
        """A world now, in all cameras."""
        from rewards.keypoint.views import View

        return [View(image=eye.straight(self._picture(obs, name, world)), camera=eye.view) for name, eye in self.cameras.items()]

    def _poses(self, obs: Mapping[str, Any], world: int) -> dict[str, np.ndarray]:
        """{object, or "tool": (4, 4)}; of the objects none where their axes are not observed."""
        from rewards.files import RewardUnavailable
        from rewards.keypoint.poses import StatePoses
        from sinew.se3 import rotation6d_to_matrix, se3

        for names in (self.objects, ()):
            try:
                frames = StatePoses(self.spec, names).frames(obs, np.array([world]))
            except RewardUnavailable:
                continue
            return {name: se3(rotation6d_to_matrix(f[3:, 0].astype(float)), f[:3, 0].astype(float)) for name, f in frames.items()}
        return {}
