"""Recorded episodes as a reward is looked at and checked on: which of them, and what it may know there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinew.cli.reward_eyes import Eye, Eyes, calibrated
from sinew.cli.reward_situation import standing
from sinew.errors import InputError

if TYPE_CHECKING:
    from demos import Dataset
    from rewards.files import Situation
    from rewards.inspection import Episode
    from sinew.protocols import Reward

BUILT_IN = ("sparse", "shaped")
"""Rewards that need no file."""


def load(reward: str) -> tuple[str, Any]:
    """Kind and settings of a reward file; (name, None) of a built-in one.

    Raises:
        InputError: no such file.
        DataError: it is no reward file.
    """
    from rewards import files

    if reward in BUILT_IN:
        return reward, None
    if not Path(reward).is_file():
        raise InputError(f"{reward}: give sparse, shaped, or a reward file (sinew reward propose, progress or generate); there is none")
    kind, settings = files.load(Path(reward))
    return kind, None if kind == "sparse" else settings


def builder(reward: str, data: Dataset, say: Callable[[str], None]) -> Callable[[int, float], Reward]:
    """(worlds, discount) → the reward as it is over these episodes.

    Raises:
        RewardUnavailable: it cannot be had for them, in one line.
        InputError: the file is wrong.
    """
    import rewards
    from rewards.shaping import DistancePotential
    from sinew.specs import ENVIRONMENT_STATE

    kind, settings = load(reward)
    said: set[str] = set()

    def once(text: str) -> None:
        """A reward is built several times, and has the same to say each time."""
        if text not in said:
            said.add(text)
            say(text)

    def build(worlds: int, gamma: float) -> Reward:
        place = replace(situation(data, worlds, gamma), say=once, folder=Path(reward).parent)
        if settings is not None:
            return settings.build(place)
        if kind == "sparse":
            return rewards.make("sparse")
        if not place.objects:
            raise InputError(f"shaped draws the tool to an object, and {data.root} tells of none in {ENVIRONMENT_STATE}")
        return rewards.make("shaped", potential=DistancePotential(place.observation, place.objects[0]), gamma=gamma)

    build(1, 1.0)
    return build


def situation(data: Dataset, worlds: int, gamma: float) -> Situation:
    """What a reward may know of recorded episodes."""
    from rewards.files import Situation

    eyes = Eyes(data.observation_spec, cameras(data), objects(data), recorded)
    return Situation(
        observation=data.observation_spec,
        action=data.action_spec,
        gamma=gamma,
        num_envs=worlds,
        max_episode_steps=max((data.episode(i).length for i in range(data.num_episodes)), default=1),
        task_text=data.tasks[0] if data.tasks else "",
        objects=objects(data),
        **eyes.told(),
    )


def recorded(obs: Mapping[str, Any], camera: str, world: int) -> np.ndarray:
    """The picture of a recorded frame."""
    from sinew.specs import IMAGES

    return obs[IMAGES + camera][world].numpy()


def objects(data: Dataset) -> tuple[str, ...]:
    """Objects whose positions are among the observations."""
    from sinew.specs import ENVIRONMENT_STATE

    spec = data.observation_spec
    names = spec[ENVIRONMENT_STATE].names if ENVIRONMENT_STATE in spec else ()
    return tuple(dict.fromkeys(n.removesuffix(".x") for n in names if n.endswith(".x") and n.removesuffix(".x") + ".y" in names))


def cameras(data: Dataset) -> dict[str, Eye]:
    """Recorded cameras that stand still and whose place is known: simulated ones by their model, real ones by their calibration."""
    from calibration.results import uncarried
    from sinew import calibrations
    from sinew.specs import IMAGES

    spec = data.observation_spec
    sizes = {key.removeprefix(IMAGES): spec[key].shape[:2] for key in spec.images}
    interface = simulated(data)
    if interface is not None:
        return {name: Eye(view) for name, view in standing(interface, sizes).items()}
    told = calibrations.load(data.root)
    if not told:
        return {}
    known = uncarried(told[-1])
    if len(known) == len(sizes) == 1:  # one camera needs no name
        known = [replace(known[0], name=next(iter(sizes)))]
    return calibrated(known, sizes)


def simulated(data: Dataset) -> Any:
    """The simulated task that a dataset was collected on; None for one from elsewhere."""
    import sim
    from sinew.cli.collect import task_of_dataset

    task = task_of_dataset(data.root)
    return sim.make_interface(task) if task is not None and task in sim.TASKS else None


def episodes(data: Dataset, most: int, seed: int = 0) -> list[Episode]:
    """At most so many episodes of two frames or more, half of them failures where there are enough.

    Raises:
        InputError: there is none.
    """
    from rewards.inspection import Episode

    infos = [e for e in (data.episode(i) for i in range(data.num_episodes)) if e.length > 1]
    if not infos:
        raise InputError(f"{data.root} holds no episode of two frames; record some")
    if most < 2:
        raise InputError(f"--episodes {most}: at least 2 are needed")
    generator = np.random.default_rng(seed)
    good, bad = (
        [infos[i] for i in generator.permutation([i for i, e in enumerate(infos) if bool(e.success) == ok])] for ok in (True, False)
    )
    failures = min(len(bad), max(most // 2, most - len(good)))
    chosen = sorted([*good[: most - failures], *bad[:failures]], key=lambda e: e.index)
    return [Episode(e.index, np.arange(e.start, e.start + e.length), bool(e.success)) for e in chosen]
