"""Which shapes of a compiled model may touch, as MuJoCo decides it."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import mujoco


def colliding(model: mujoco.MjModel, body: int) -> list[int]:
    """Shapes of a body that may touch anything."""
    first = int(model.body_geomadr[body])
    geoms = range(first, first + int(model.body_geomnum[body]))
    return [g for g in geoms if model.geom_contype[g] or model.geom_conaffinity[g]]


def touch(model: mujoco.MjModel, a: int, b: int) -> bool:
    """Whether two shapes may touch: by their masks, unless one body is the other's parent or the pair is excluded."""
    bodies = [int(model.geom_bodyid[g]) for g in (a, b)]
    welds = [int(model.body_weldid[body]) for body in bodies]
    parents = [int(model.body_weldid[model.body_parentid[weld]]) for weld in welds]
    related = welds[0] == welds[1] or (0 not in welds and (welds[0] == parents[1] or welds[1] == parents[0]))
    excluded = {int(signature) for signature in model.exclude_signature}
    if related or (bodies[0] << 16) + bodies[1] in excluded or (bodies[1] << 16) + bodies[0] in excluded:
        return False
    types, affinities = model.geom_contype, model.geom_conaffinity
    return bool(types[a] & affinities[b] or types[b] & affinities[a])
