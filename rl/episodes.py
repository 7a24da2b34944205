"""Recorded episodes as replay: what a demonstration did, beside what the base policy would have planned there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rl.batch import FrameSpec
from rl.replay import DEMO, Ring
from sinew.errors import DataError
from sinew.protocols import Executor


def add_episode(
    ring: Ring,
    features: Tensor,
    action: Tensor,
    *,
    success: bool,
    base_action: Tensor | None = None,
    final_features: Tensor | None = None,
    final_base_action: Tensor | None = None,
    reward: Tensor | None = None,
    source: int = DEMO,
) -> int:
    """Append one recorded episode to a ring of one world.

    The reward is 1 on the last step of a success, which is terminal, and 0 else, unless it is given. An episode without success
    ended by time and bootstraps: where its final state is not given, its last frame serves as the final state and its last action is
    left out.

    Args:
        ring: with frames "features" and "base_action".
        features: (L, D) what the policy observes before each action.
        action: (L, A) executed, in [-1, 1].
        success: whether the last step reached the goal.
        base_action: (L, A) what the base planned at each frame; the executed action if left out.
        final_features: (D,) after the last action.
        final_base_action: (A,) planned there; needed with `final_features` unless the episode is a success.
        reward: (L,) of every step.
        source: source bits of its steps.

    Returns:
        Number of steps appended.

    Raises:
        DataError: lengths differ, a value is not finite, or the final base action is missing.
    """
    if ring.num_envs != 1:
        raise DataError(f"recorded episodes need a ring of one world, this one has {ring.num_envs}")
    base_action = action if base_action is None else base_action
    if not len(features) == len(action) == len(base_action) or not len(action):
        raise DataError(
            f"an episode has {len(features)} features, {len(action)} actions and {len(base_action)} base actions; they must agree"
        )
    for name, values in (("features", features), ("action", action), ("base_action", base_action), ("reward", reward)):
        if values is None:
            continue
        bad = torch.nonzero(~torch.isfinite(values.reshape(len(values), -1)).all(1))
        if len(bad):
            raise DataError(f"{name} of a recorded episode is not finite at frame {int(bad[0])}; repair or drop the episode")
    steps = len(action)
    final = None
    if not success and final_features is None:
        steps -= 1
        if steps < 1:
            return 0
        final_features, final_base_action = features[-1], base_action[-1]
    if final_features is not None and (final_base_action is not None or success):
        final = {"features": final_features[None], "base_action": (action[-1] if final_base_action is None else final_base_action)[None]}
    if not success and final is None:
        raise DataError("an episode that ended by time needs final_base_action beside final_features: its last state bootstraps")
    frames = {"features": features, "base_action": base_action.clamp(-1, 1)}
    _append(ring, {k: v[:steps] for k, v in frames.items()}, action, success, final, source, reward)
    return steps


def add_frames(ring: Ring, frames: Mapping[str, Tensor], action: Tensor, *, success: bool, reward: Tensor | None = None) -> int:
    """As `add_episode` for frames of any kind, (L, ...) each: where there is no success, the last one is the final state."""
    steps = len(action) - (not success)
    if steps > 0:
        final = None if success else {key: value[-1:] for key, value in frames.items()}
        _append(ring, {key: value[:steps] for key, value in frames.items()}, action, success, final, DEMO, reward)
    return steps


def _append(
    ring: Ring,
    frames: Mapping[str, Tensor],
    action: Tensor,
    success: bool,
    final: Mapping[str, Tensor] | None,
    source: int,
    reward: Tensor | None,
) -> None:
    """One step after the other; the last is terminal where it is a success, and a time-out else."""
    executed, steps = action.clamp(-1, 1), len(frames["features"])
    for t in range(steps):
        last = torch.tensor([t == steps - 1])
        won = last & success
        ring.add(
            {key: value[t : t + 1] for key, value in frames.items()}, executed[t : t + 1],
            won.float() if reward is None else reward[t : t + 1].float(), won, last & ~won,
            final=final if bool(last) else None, source=source,
        )  # fmt: skip


def check_demos(demos: Ring | None, layout: FrameSpec, action_dim: int) -> None:
    """Refuse recorded episodes of another task.

    Args:
        demos: recorded; None for none.
        layout: frames that are remembered.
        action_dim: A.

    Raises:
        DataError: names what differs.
    """
    if demos is None:
        return
    here = {k: tuple(shape) for k, (shape, _) in layout.items()} | {"action": (action_dim,)}
    there = {k: tuple(shape) for k, (shape, _) in demos.frame.items()} | {"action": (demos.action_dim,)}
    for key, shape in here.items():
        if there.get(key) != shape:
            found = there.get(key, "missing")
            raise DataError(f"the recorded episodes are of another task or method: {key} is {found} there, {shape} here")


def plan_along(executor: Executor, episodes: Sequence[Mapping[str, Tensor]], num_envs: int, *, seed: int = 0) -> list[Tensor]:
    """What the base would have planned at every frame of recorded episodes, chunks advancing as they do in a rollout.

    Args:
        executor: of `num_envs` worlds.
        episodes: one {key: (L, ...)} per episode.
        num_envs: worlds of the executor; as many episodes are walked side by side.
        seed: of the base's noise.

    Returns:
        One (L, A) in [-1, 1] per episode.
    """
    starts = iter(range(seed, seed + len(episodes), num_envs))

    def reset() -> None:
        first = next(starts)
        executor.reset(None, [first + i for i in range(num_envs)])

    return [e["plan"] for e in walk_along(lambda obs: {"plan": executor.plan(obs).clamp(-1, 1)}, reset, episodes, num_envs)]


def walk_along(
    look: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    reset: Callable[[], None],
    episodes: Sequence[Mapping[str, Tensor]],
    num_envs: int,
) -> list[dict[str, Tensor]]:
    """What `look` makes of every frame of recorded episodes, walked `num_envs` at a time from a `reset` on.

    Args:
        look: observations of `num_envs` worlds → tensors (num_envs, ...).
        reset: new episodes begin in all of them.
        episodes: one {key: (L, ...)} per episode.
        num_envs: worlds.

    Returns:
        {key: (L, ...)} per episode.
    """
    seen: list[dict[str, Tensor]] = []
    for first in range(0, len(episodes), num_envs):
        group = [episodes[min(first + i, len(episodes) - 1)] for i in range(num_envs)]
        lengths = [len(next(iter(e.values()))) for e in group]
        reset()
        steps = [
            look({k: torch.stack([e[k][min(t, n - 1)] for e, n in zip(group, lengths, strict=True)]) for k in group[0]})
            for t in range(max(lengths))
        ]
        walked = {key: torch.stack([step[key] for step in steps], 1) for key in steps[0]}
        seen += [
            {key: value[i, : lengths[i]].clone() for key, value in walked.items()} for i in range(min(num_envs, len(episodes) - first))
        ]
    return seen
