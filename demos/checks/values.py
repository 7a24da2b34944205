"""Numbers that no robot produces: not finite, outside their limits, jumping, or frozen while the robot is told to move."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from demos.checks.finding import Finding, by_episode, stretch
from demos.dataset import Dataset
from demos.layout import STAMP, columns
from demos.positions import places
from sinew.specs import ACTION, STATE, TensorSpec

ACTION_SLACK, STATE_SLACK = 1e-3, 0.01
"""Of the range: farther outside is outside. States are measured, and sensors are off by a little."""
JUMP = 8.0
"""Times the step that 99 of 100 frames stay below: a larger one is a jump, if it is also `JUMP_SHARE` of the element's range."""
JUMP_SHARE = 0.05
SWITCH_SHARE = 0.1
"""Elements that jump in more than this share of the episodes, and in two at least, do so by their nature."""
FROZEN_S = 1.0
"""A state that stays the same to the last bit for so long, while actions ask for motion, is no measurement."""
COMMANDED_SHARE = 0.05
"""Of the action's range: less is no motion that was asked for."""


def check_values(dataset: Dataset) -> Iterator[Finding]:
    """Everything that this file looks for."""
    episode = np.repeat(np.arange(dataset.num_episodes), [dataset.episode(i).length for i in range(dataset.num_episodes)])
    start = np.array([dataset.episode(i).start for i in range(dataset.num_episodes)])
    for key, (dtype, _) in columns(dataset.info).items():
        if dtype.startswith("float"):
            yield from _not_finite(dataset, key, episode, start)
    if dataset.bounds_are_told:
        for key, low, high, names, slack in _limited(dataset):
            yield from _outside(dataset, key, low, high, names, slack, episode, start)
    yield from _jumps(dataset, episode, start)
    yield from _frozen(dataset)


def _not_finite(dataset: Dataset, key: str, episode: np.ndarray, start: np.ndarray) -> Iterator[Finding]:
    values = dataset.column(key).reshape(len(dataset), -1)
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    for number, frames in by_episode(bad, episode, start):
        row = values[start[number] + frames[0]]
        element = int(np.flatnonzero(~np.isfinite(row))[0])
        message = f"element {element} is {row[element]}; {stretch(frames)} not finite"
        yield Finding("warning", "data", message, key, number, int(frames[0]), int(frames[-1]), "not finite")


def _limited(dataset: Dataset) -> Iterator[tuple[str, np.ndarray, np.ndarray, tuple[str, ...], float]]:
    """Vectors whose limits were written down: key, lowest and highest values, names of elements, slack."""
    spec = dataset.action_spec
    yield ACTION, np.array(spec.low), np.array(spec.high), spec.names, ACTION_SLACK
    for key in dataset.observation_spec.vectors:
        tensor: TensorSpec = dataset.observation_spec[key]
        if tensor.low is not None or tensor.high is not None:
            size = int(np.prod(tensor.shape))
            low = np.broadcast_to(-np.inf if tensor.low is None else np.array(tensor.low), size)
            high = np.broadcast_to(np.inf if tensor.high is None else np.array(tensor.high), size)
            yield key, low, high, tensor.names or tuple(f"element {i}" for i in range(size)), STATE_SLACK


def _outside(
    dataset: Dataset, key: str, low: np.ndarray, high: np.ndarray, names: tuple[str, ...], slack: float,
    episode: np.ndarray, start: np.ndarray,
) -> Iterator[Finding]:  # fmt: skip
    values = dataset.column(key).reshape(len(dataset), -1)
    span = high - low
    over = np.maximum(low - values, values - high) / np.where(np.isfinite(span) & (span > 0), span, 1.0)
    bad = np.flatnonzero((over > slack).any(1))
    for number, frames in by_episode(bad, episode, start):
        rows = start[number] + frames
        frame, element = np.unravel_index(int(np.nanargmax(over[rows])), over[rows].shape)
        told = f"{names[element]} is {values[rows[frame], element]:.6g}, outside {low[element]:g} … {high[element]:g}"
        yield Finding("warning", "data", f"{told}; {stretch(frames)}", key, number, int(frames[0]), int(frames[-1]), "limit")


def _jumps(dataset: Dataset, episode: np.ndarray, start: np.ndarray) -> Iterator[Finding]:
    for key, names, unit in _placed(dataset):
        values = dataset.column(key).reshape(len(dataset), -1).astype(np.float64)
        at, _ = places(names, unit, values.shape[1])
        at &= np.array([u.strip() != "1" for u in unit.split(",")])  # parts of rotations hardly vary, and leap when something is touched
        if len(values) < 3 or not at.any():
            continue
        values[~np.isfinite(values)] = 0.0  # told by another check; the step to it counts, as does the one from it
        steps = np.abs(np.diff(values, axis=0)) / _periods(dataset)[:, None]
        steps[np.diff(episode) != 0] = 0.0
        steps[:, ~at] = 0.0
        span = np.ptp(values, axis=0)
        jump = (steps > JUMP * np.quantile(steps, 0.99, axis=0)) & (steps > JUMP_SHARE * span) & (steps > 0)
        often = np.array([len(np.unique(episode[1:][column])) for column in jump.T])
        jump[:, often > max(1.0, SWITCH_SHARE * dataset.num_episodes)] = False
        for number, frames in by_episode(1 + np.flatnonzero(jump.any(1)), episode, start):
            row = start[number] + int(frames[0])
            element = int(np.argmax(steps[row - 1] * jump[row - 1]))
            before, after = values[row - 1, element], values[row, element]
            turn = "rad" in unit and abs(abs(after - before) - 2 * np.pi) < 0.3
            what = "wraps around by a turn" if turn else "jumps"
            name = names[element] if names else f"element {element}"
            times = steps[row - 1, element] / max(np.quantile(steps[:, element], 0.99), 1e-12)
            size = f"{times:.0f} times the largest usual step" if times < 1e6 else "and hardly moves otherwise"
            message = f"{name} {what} from {before:.4g} to {after:.4g}, {size}; {stretch(frames)} do"
            yield Finding("warning", "data", message, key, number, int(frames[0]), int(frames[-1]), "jump")


def _placed(dataset: Dataset) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Vectors that tell a place: the state, and the action where it is one. Key, names, unit."""
    if STATE in dataset.observation_spec.tensors:
        spec = dataset.observation_spec[STATE]
        yield STATE, spec.names, spec.unit
    if dataset.bounds_are_told and dataset.action_spec.kind in ("joint_position", "ee_pose"):
        yield ACTION, dataset.action_spec.names, ""


def _periods(dataset: Dataset) -> np.ndarray:
    """(frames - 1,) time to the next frame in periods, 1 at least: after a gap, a large step is none."""
    if STAMP not in columns(dataset.info):
        return np.ones(len(dataset) - 1)
    return np.maximum(1.0, np.diff(dataset.column(STAMP)[:, 0]) * dataset.fps / 1e9)


def _frozen(dataset: Dataset) -> Iterator[Finding]:
    if STATE not in dataset.observation_spec.tensors:
        return
    spec, limit = dataset.action_spec, max(2, round(FROZEN_S * dataset.fps))
    values = dataset.column(STATE).reshape(len(dataset), -1)
    action = dataset.column(ACTION).reshape(len(dataset), -1)
    span = np.array(spec.high) - np.array(spec.low)
    _, fingers = places(spec.names, "", action.shape[1])
    for number in range(dataset.num_episodes):
        e = dataset.episode(number)
        rows = slice(e.start, e.start + e.length)
        for first, end in _still(values[rows]):
            if end - first < limit:
                continue
            asked = action[rows][first : end - 1] / np.where(span > 0, span, 1.0)
            asked = asked[:, ~fingers] if (~fingers).any() else asked
            moved = np.abs(asked.sum(0)) if spec.kind in ("joint_delta", "ee_delta") else np.ptp(asked, axis=0)
            if np.nanmax(moved, initial=0.0) > COMMANDED_SHARE:
                message = f"the state stays the same for {end - first} frames although the actions ask for motion: is the sensor read?"
                yield Finding("warning", "data", message, STATE, number, first, end - 1, "frozen")


def _still(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches [first, end) of rows (n, D) that are the same to the last bit."""
    changes = np.flatnonzero((values[1:] != values[:-1]).any(1)) + 1
    edges = np.concatenate([[0], changes, [len(values)]])
    yield from zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
