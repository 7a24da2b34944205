"""Pictures of thousands of worlds at once, by MuJoCo Warp's ray tracer: no OpenGL, and no world waits for another's picture."""
# warp ships no type stubs that pyright understands.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sim.robots.config import find

if TYPE_CHECKING:
    import mujoco

    from sim.warp_physics import WarpPhysics

NOTHING = -1
"""In the place of a body where nothing is met, as in `sim.views`."""


class WarpViews:
    """What named cameras of a model see in every world, as tensors on the device of the physics.

    Lens and place are those of `sim.render`: a point lands on the same pixel. Light differs: each point is lit by itself here, where OpenGL
    lights corners and fills in between, so that the table is brighter under the lamp; and a ray that meets nothing is one colour.

    Args:
        physics: the worlds.
        model: their model, for names.
        cameras: names.
        height: of the pictures, pixels.
        width: likewise.
        depth: whether distances are wanted as well.
        bodies: whether what is seen shall be named, too.

    Raises:
        InputError: no camera of that name.
    """

    def __init__(
        self,
        physics: WarpPhysics,
        model: mujoco.MjModel,
        cameras: Sequence[str],
        height: int,
        width: int,
        *,
        depth: bool = False,
        bodies: bool = False,
    ) -> None:
        ids = sorted({find(model, "camera", name, "scene") for name in cameras})
        self.physics, self.shape = physics, (physics.num_envs, height, width)
        self._at = {name: ids.index(find(model, "camera", name, "scene")) * height * width for name in cameras}
        self._context: Any = physics.eyes(model, ids, (width, height), depth, bodies)
        self._rgb, self._depth, self._seen = physics.looked(self._context)
        self._bodies = torch.from_numpy(model.geom_bodyid.copy()).to(physics.device)

    def look(self) -> None:
        """Draw all cameras of all worlds as they are now."""
        self.physics.draw(self._context)

    def images(self, camera: str) -> Tensor:
        """(N, H, W, 3) uint8 of the last `look`."""
        return self._part(self._rgb.view(torch.uint8).unflatten(1, (-1, 4)), camera)[..., :3].flip(-1)

    def depth_m(self, camera: str) -> Tensor:
        """(N, H, W) metres along the optical axis; 0 where nothing is met."""
        return self._part(self._depth, camera).clone()

    def bodies(self, camera: str) -> Tensor:
        """(N, H, W) int64, number of the body that is seen; 0 is the table and what stands still with it, -1 nothing."""
        seen = self._part(self._seen, camera)
        geom = seen[..., 0].long()
        return torch.where((geom >= 0) & (seen[..., 1] == self.physics.GEOM), self._bodies[geom.clamp(0)].long(), NOTHING)

    def _part(self, rays: Tensor, camera: str) -> Tensor:
        """The rays (N, R, …) of a camera as (N, H, W, …)."""
        first, (_, height, width) = self._at[camera], self.shape
        return rays[:, first : first + height * width].unflatten(1, (height, width))
