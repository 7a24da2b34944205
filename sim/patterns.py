"""Scenes with more than a task has: patterns to draw surfaces with, and bodies that stand for payloads. The physics stays the same."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from sinew.errors import InputError

if TYPE_CHECKING:
    from sim.interface import TaskInterface
    from sim.randomise import Randomisation

PATTERNS = 24
"""Patterns there are, numbered from 1."""
SIZE = 64
"""Texels along an edge."""


def pattern(number: int) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8, the same for the same number: plain, stripes, checks, blobs, grain or marble in two or three colours."""
    rng = np.random.default_rng((number, 20_26))
    colours = rng.uniform(0.05, 0.95, (3, 3))
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    kind, cycles = number % 6, int(rng.integers(2, 9))
    turned = x * round(np.cos(number)) + y  # whole cycles along both edges, so that neighbouring tiles meet without a seam
    if kind == 0:
        share = np.zeros((SIZE, SIZE))
    elif kind == 1:
        share = (np.sin(2 * np.pi * cycles * turned) > 0).astype(float)
    elif kind == 2:
        share = (np.sin(2 * np.pi * cycles * x) * np.sin(2 * np.pi * cycles * y) > 0).astype(float)
    elif kind == 3:
        share = (_smooth(rng, 6.0) > 0).astype(float)
    elif kind == 4:
        share = 0.5 + 0.2 * _smooth(rng, 1.0) + 0.1 * np.sin(2 * np.pi * cycles * x)
    else:
        share = 0.5 + 0.5 * np.sin(2 * np.pi * cycles * turned + 2.0 * _smooth(rng, 8.0))
    image = colours[0] + np.clip(share, 0, 1)[..., None] * (colours[1] - colours[0])
    grain = 0.02 * rng.standard_normal((SIZE, SIZE, 1))
    return (255 * np.clip(image + grain, 0, 1)).astype(np.uint8)


def _smooth(rng: np.random.Generator, scale: float) -> np.ndarray:
    """(SIZE, SIZE) noise of unit variance whose grains are about `scale` texels, periodic."""
    frequency = np.fft.fftfreq(SIZE)
    spectrum = np.fft.fft2(rng.standard_normal((SIZE, SIZE)))
    smooth = np.fft.ifft2(spectrum * np.exp(-2 * (np.pi * scale) ** 2 * (frequency[:, None] ** 2 + frequency[None] ** 2))).real
    return smooth / smooth.std()


def material(number: int) -> str:
    """Name of a pattern's material in a dressed scene."""
    return f"pattern {number}"


def payload_body(tool: str) -> str:
    """Name of the body that stands for what a tool carries in a dressed scene."""
    return f"payload {tool}"


def dressed(interface: TaskInterface, randomisation: Randomisation) -> TaskInterface:
    """The task in a scene that has what is drawn: all patterns, and a body without mass at each tool for payloads.

    States of one model are states of the other.

    Raises:
        InputError: the scene was built in another way than by name, so that nothing can be added to it.
    """
    if not randomisation.has("texture", "payload"):
        return interface
    scene = interface.scene
    if scene.spec is None:
        raise InputError("textures and payloads are added to scenes that are known by their task's name; this one was built by hand")
    spec = scene.spec.copy()
    if randomisation.has("texture"):
        _add_patterns(spec)
    if randomisation.has("payload"):
        for robot in scene.robots:
            add_payload(spec, robot.tool)
    there = copy.copy(interface)
    there.scene = replace(scene, model=spec.compile())
    return there


def _add_patterns(spec: mujoco.MjSpec) -> None:
    for number in range(1, PATTERNS + 1):
        name = material(number)
        texels = pattern(number).ravel().tolist()
        spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=SIZE, height=SIZE, nchannel=3, data=texels)
        added = spec.add_material(name=name, texrepeat=[2.0, 2.0], texuniform=True)
        textures = list(added.textures)
        textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
        added.textures = textures


def add_payload(spec: mujoco.MjSpec, tool: str) -> None:
    """A body that is fixed at a tool and has, as long as nobody gives it some, no mass."""
    site = spec.site(tool)
    parent, position = (site.parent, site.pos) if site is not None else (spec.body(tool), (0.0, 0.0, 0.0))
    still = {"explicitinertial": True, "mass": 0.0, "inertia": [0.0] * 3, "ipos": [0.0] * 3, "iquat": [1.0, 0.0, 0.0, 0.0]}
    parent.add_body(name=payload_body(tool), pos=position, **still)
