"""A scene of two boxes on a table, drawn exactly, and what is true of it."""

import numpy as np

from rewards.files import CameraView
from rewards.keypoint.oracle import KeypointTruth
from rewards.keypoint.views import View

HEIGHT, WIDTH = 240, 320
BOXES = {"box": ((0.40, -0.10, 0.0), (0.46, -0.04, 0.06)), "bowl": ((0.52, 0.06, 0.0), (0.60, 0.14, 0.03))}
COLOURS = {"box": (210, 60, 50), "bowl": (40, 90, 200)}


def looking(position, target=(0.5, 0.0, 0.03)):
    """A camera that looks at a target, level."""
    forward = np.subtract(target, position) / np.linalg.norm(np.subtract(target, position))
    right = np.cross(forward, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = np.stack((right, np.cross(forward, right), forward), 1), position
    matrix = np.array([[330.0, 0, (WIDTH - 1) / 2], [0, 330.0, (HEIGHT - 1) / 2], [0, 0, 1]])
    return CameraView(matrix=matrix, T_world_camera=T, width=WIDTH, height=HEIGHT)


def ray_traced(camera):
    """Two boxes on a table, exactly: picture, depth along the axis, masks."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack((u, v, np.ones_like(u)), -1) @ np.linalg.inv(camera.matrix).T @ camera.T_world_camera[:3, :3].T
    origin = camera.T_world_camera[:3, 3]
    depth = -origin[2] / np.minimum(rays[..., 2], -1e-6)
    image = np.full((HEIGHT, WIDTH, 3), (150, 140, 120), np.uint8)
    which = np.zeros((HEIGHT, WIDTH), int)
    for number, (name, (low, high)) in enumerate(BOXES.items(), 1):
        near, far = (np.array(low) - origin) / rays, (np.array(high) - origin) / rays
        enter, leave = np.minimum(near, far).max(-1), np.maximum(near, far).min(-1)
        hit = (enter < leave) & (enter > 0) & (enter < depth)
        depth, which = np.where(hit, enter, depth), np.where(hit, number, which)
        image[hit] = COLOURS[name]
    return image, depth.astype(np.float32), {name: which == i for i, name in enumerate(BOXES, 1)}


def views(depth=True, masks=True):
    made = []
    for position in ((1.1, 0.0, 0.55), (0.9, -0.6, 0.5)):
        camera = looking(position)
        image, metres, known = ray_traced(camera)
        made.append(View(image=image, camera=camera, depth_m=metres if depth else None, masks=known if masks else {}))
    return made


POSES = {name: np.eye(4) for name in BOXES}
for _name, (_low, _high) in BOXES.items():
    POSES[_name][:3, 3] = np.add(_low, _high) / 2
POSES["tool"] = np.eye(4)
POSES["tool"][:3, 3] = (0.5, 0.0, 0.3)
CENTRE = {name: POSES[name][:3, 3] for name in BOXES}


def truth(first, second=None):
    up = CENTRE["box"] + (0, 0, 0.1)
    over, into = CENTRE["bowl"] + (0, 0, 0.115), CENTRE["bowl"] + (0, 0, 0.045)
    return KeypointTruth(
        view=first, second=second, function_m=CENTRE["box"], grasp_m=CENTRE["box"], target_m=CENTRE["bowl"],
        approach=[up], path=[(up, "start"), (over, "target"), (into, "target")],
    )  # fmt: skip
