"""Have a model say, while a policy learns, how far each episode has come: writes the reward file that asks, and tries it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sinew.cli.reward_learned import RewardArgs, check_out
from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from demos import Dataset
    from rewards.inspection import Episode
    from rewards.progress.asked import Asked
    from rewards.vlm import VLM

RECORDED = "recorded:"
LOOKED = 0.5
"""Rank correlation with time below which a model does not see how far a success has come."""


@dataclass(frozen=True, kw_only=True)
class Args(RewardArgs):
    """Have a model say, while a policy learns, how far each episode has come: writes the reward file that asks, and tries it."""

    vlm: str = "http://localhost:8000/v1"
    """Address of a server that speaks chat completions (vLLM, Ollama, a cloud), or recorded:DIR for answers in a folder beside --out."""
    model: str = "default"
    """Name of the model on the server."""
    question: Literal["shuffled", "likelihood"] = "shuffled"
    """shuffled: percent done of each picture, shown in random order (GVL); likelihood: the probability that the task is done, where
    the server tells it (TOPReward)."""
    every: int = 15
    """Steps between two questions about an episode."""
    pictures: int = 8
    """Most pictures in a question."""
    camera: str = "front"
    """Whose pictures are shown."""
    max_calls: int = 1000
    """Questions sent in all; when they are spent success alone is rewarded."""
    record: str = ""
    """Name of a folder beside --out that keeps the answers: the same question is never sent twice."""
    data: Path | None = None
    """Dataset with pictures of that camera on which the model is tried: whether it sees how far an episode has come."""
    episodes: int = 4
    """Episodes it is tried on, half of them failures where there are enough."""


def run(args: Args) -> dict[str, Any]:
    """Write the reward file, and try it where there is --data."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return make(args, progress)


def make(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """The same, telling `progress`; a model that cannot be asked now is said, and the file is written all the same.

    Raises:
        InputError: the address is none, nothing was recorded, --data has no such pictures, or --out is there already.
    """
    from rewards import files

    check_out(args.out)
    if args.out.exists():
        raise InputError(f"{args.out} is there already; choose another --out")
    settings = settings_of(args)
    vlm = settings.vlm(args.out.parent)
    made: dict[str, Any] = {"vlm": args.vlm, "model": vlm.model, "seed": args.seed}
    told: dict[str, Any] = {"out": str(args.out), "model": vlm.model, "question": args.question, "because": None, "tried": None}
    if args.data is not None:
        from demos import Dataset

        data = Dataset(args.data)
        made |= {"data": str(args.data), "hash": data.content_hash()}
        try:
            told["tried"] = tried(vlm, settings, data, args, progress)
        except files.RewardUnavailable as problem:
            told["because"] = str(problem)
    files.save(args.out, "asked", settings, {**made, "tried": told["tried"]})
    return told


def settings_of(args: Args) -> Asked:
    """What the reward file holds.

    Raises:
        InputError: a number is out of its range, or recorded answers do not lie beside --out.
    """
    from rewards.progress.asked import Asked

    names = ("model", "camera", "question", "every", "pictures", "max_calls", "weight", "seed")
    told: dict[str, Any] = {name: getattr(args, name) for name in names}
    if not args.vlm.startswith(RECORDED):
        return Asked(base_url=args.vlm, record=args.record, **told)
    folder = Path(args.vlm.removeprefix(RECORDED))
    if folder.resolve().parent != args.out.resolve().parent:
        raise InputError(f"--vlm {args.vlm}: the answers are found when learning, so the folder lies beside --out, in {args.out.parent}")
    if args.record:
        raise InputError(f"--record {args.record}: {args.vlm} asks nobody, so that there is nothing to keep")
    return Asked(record=folder.name, **told)


def tried(vlm: VLM, settings: Asked, data: Dataset, args: Args, progress: Progress) -> dict[str, Any]:
    """Ask about recorded episodes as is asked when learning.

    Returns:
        {"episodes": [{"episode", "success", "progress": [...], "rank_correlation"}], "rank_correlation" of successes, "sees"}.

    Raises:
        RewardUnavailable: there is no usable answer.
        InputError: the data has no pictures of that camera.
    """
    from rewards.measures import rank_correlation
    from sinew.cli.reward_recorded import episodes
    from sinew.specs import IMAGES

    if IMAGES + settings.camera not in data.observation_spec:
        there = ", ".join(key.removeprefix(IMAGES) for key in data.observation_spec.images) or "none"
        raise InputError(f"{data.root} has no pictures of camera {settings.camera!r}; its cameras: {there}")
    chosen = episodes(data, args.episodes, args.seed)
    task = data.tasks[0] if data.tasks else ""
    progress.start("episodes", len(chosen))
    found = []
    for episode in chosen:
        values = asked_about(vlm, settings, data, episode, task)
        found.append({"episode": episode.index, "success": episode.success, "progress": values,
                      "rank_correlation": rank_correlation(values)})  # fmt: skip
        progress.advance(1)
    good = [f["rank_correlation"] for f in found if f["success"]]
    mean = float(np.mean(good)) if good else None
    return {"episodes": found, "rank_correlation": mean, "sees": None if mean is None else mean >= LOOKED}


def asked_about(vlm: VLM, settings: Asked, data: Dataset, episode: Episode, task: str) -> list[float]:
    """What the model says of pictures spread over an episode: percent from one question, or likelihoods from one for each."""
    from rewards.progress.asked import likelihood, shuffled_progress
    from sinew.specs import IMAGES

    frames = np.unique(np.linspace(0, len(episode.frames) - 1, settings.pictures).round().astype(int))
    every = [picture for block in data.pictures(IMAGES + settings.camera, episode.index) for picture in block]
    shown = [every[i] for i in frames]
    if settings.question == "shuffled":
        return shuffled_progress(vlm, shown, task, settings.seed).tolist()
    return [likelihood(vlm, shown[: i + 1], task, settings.seed) for i in range(len(shown))]


def show(result: dict[str, Any], console: Console) -> None:
    """What the model saw, and what to do with the file."""
    if result["because"] is not None:
        told = f"the model cannot be asked now: {result['because']}; while that is so, success alone is rewarded"
        console.print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)
    elif result["tried"] is None:
        told = "not tried: give --data, a dataset with pictures, to see whether the model sees how far an episode has come"
        console.print(told, highlight=False, soft_wrap=True)
    else:
        for each in result["tried"]["episodes"]:
            values = "  ".join(f"{v:.2f}" for v in each["progress"])
            name = f"episode {each['episode']} ({'success' if each['success'] else 'failure'})"
            console.print(f"{name}: {values}; rank correlation with time {each['rank_correlation']:.2f}", highlight=False, soft_wrap=True)
        if result["tried"]["sees"] is False:
            console.print(f"the model does not see how far a success has come: rank correlation below {LOOKED}", style="yellow")
    told = f"{result['out']} asks {result['model']} ({result['question']}); check it: sinew reward check {result['out']} --data DIR"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
