"""Policies as the command line puts them together: loaded from wherever they are, composed, and the best of several candidates."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.errors import InputError, SpecError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from demos import Dataset
    from policies import PolicyModule
    from policies.best_of import Value
    from policies.counts import CountNetwork
    from sinew.rundir import RunDir

HUB, SERVERS = "hf:", ("https://", "http://", "wss://", "ws://")
GRID = tuple(i / 10 for i in range(11))
"""Weights of the first policy that a search tries; its ends are the policies alone."""


@dataclass(frozen=True)
class Source:
    """A policy and where it came from."""

    name: str
    """What the user called it."""
    policy: PolicyModule
    run: RunDir | None = None
    """Its run; None for a policy of LeRobot or behind a server."""

    def task(self) -> str:
        """The task that it was trained on.

        Raises:
            InputError: it does not say.
        """
        from sinew.cli.eval import task_of

        if self.run is None:
            raise InputError(f"{self.name} does not say which task it is for; name it with --task")
        return task_of(self.run)

    def digest(self) -> str:
        """Of its weights and description; of its name where these lie elsewhere."""
        if self.run is None:
            return hashlib.sha256(self.name.encode()).hexdigest()
        whole = hashlib.sha256()
        for name in ("policy.safetensors", "policy.json"):
            whole.update((self.run / name).read_bytes())
        return whole.hexdigest()


def open_source(
    name: str | Path,
    task: str | None = None,
    action: str = "ee_delta",
    token_file: Path | None = None,
    ca: Path | None = None,
    trust_first_use: bool = False,
) -> Source:
    """The policy of a run's folder, of LeRobot ("hf:<folder or hub id>"), or behind `sinew serve` ("https://host:port").

    Args:
        name: which one.
        task: what a policy of LeRobot is for, which it does not say.
        action: what its actions command.
        token_file: secret of the server; SINEW_TOKEN if None.
        ca: authority that signed the server's certificate.
        trust_first_use: trust a server that was never seen.

    Raises:
        InputError: there is no such policy, or the task of one of LeRobot is not named.
    """
    import policies
    from sinew.rundir import RunDir

    text = str(name)
    if text.startswith(SERVERS):
        from policies.remote import connect, read_token

        return Source(text, connect(text, read_token(token_file), ca=str(ca) if ca else None, trust_first_use=trust_first_use, exact=True))
    if token_file is not None:
        raise InputError(f"--token-file {token_file} is for a policy behind a server, https://host:port; {text} is none")
    if text.startswith(HUB):
        return Source(text, _lerobot(text.removeprefix(HUB), task, action))
    run = RunDir.open(text)
    return Source(text, policies.load(run), run)


def _lerobot(source: str, task: str | None, action: str) -> PolicyModule:
    """A policy of LeRobot for a task."""
    import sim
    from policies.lerobot import load

    if task is None:
        raise InputError(f"{HUB}{source} does not say which task it is for; name it with --task")
    if task.startswith("gym:"):
        world = sim.GymnasiumTask(task)
        return load(source, world.observation_spec, world.action_spec)
    bare = sim.make_interface(task, action=action)
    cameras = [bare.scene.model.camera(i).name for i in range(bare.scene.model.ncam)]
    interface = sim.make_interface(task, action=action, cameras=cameras)
    return load(source, interface.observation_spec, interface.action_spec)


# ---------------------------------------------------------------- composition


def weights_of(text: str, count: int) -> tuple[float, ...]:
    """Weights of `count` policies: one for each, or the first one's alone, and the others share the rest.

    Raises:
        InputError: the text is neither.
    """
    try:
        given = tuple(float(part) for part in text.split(","))
    except ValueError:
        given = ()
    if len(given) == 1 and 0 <= given[0] <= 1:
        return (given[0], *[(1 - given[0]) / (count - 1)] * (count - 1))
    if len(given) != count or min(given) < 0 or abs(sum(given) - 1) > 1e-6:
        raise InputError(f"--weight {text!r}: give the first policy's weight from 0 to 1, {count} weights that sum to 1, or search")
    return given


def compose(sources: Sequence[Source], weights: Sequence[float]) -> PolicyModule:
    """The composition of the policies, or the only one itself."""
    import policies

    return sources[0].policy if len(sources) == 1 else policies.Composed([source.policy for source in sources], weights)


def best_weight(rates: Sequence[tuple[float, int]]) -> float:
    """The first policy's weight with most successes among (weight, successes); of equals the one nearest to one half."""
    return max(rates, key=lambda entry: (entry[1], -abs(entry[0] - 0.5)))[0]


# ---------------------------------------------------------------- best of n


def best_of(
    policy: PolicyModule,
    n: int,
    scorer: str,
    sources: Sequence[Source],
    *,
    weights: Sequence[float] = (1.0,),
    folder: Path | None = None,
    data: Path | None = None,
    progress: Progress = SILENT,
) -> PolicyModule:
    """The best of n candidates of `policy` by a scorer.

    Args:
        policy: what `compose` made.
        n: candidates; 1 for the policy itself.
        scorer: "count", "energy" or "q".
        sources: what it is made of.
        weights: and with which weights.
        folder: where pseudo-counts are kept.
        data: what they are learned from; None for the data of the first source.
        progress: told how they are learned.

    Raises:
        InputError: the numbers cannot be, or there is nothing to score by.
        SpecError: the policy lacks the capability that the scorer needs, or the data do not fit it.
    """
    import policies

    check_best_of(policy, n, scorer, sources, folder=folder, data=data)
    if n == 1:
        return policy
    if scorer == "energy":
        return policies.BestOfN(policy, n, scorer)
    if scorer == "q":
        return policies.BestOfN(policy, n, value_of(sources))
    return policies.BestOfN(policy, n, counts_of(policy, sources, weights, folder, data, progress))


def check_best_of(
    policy: PolicyModule, n: int, scorer: str, sources: Sequence[Source], *, folder: Path | None = None, data: Path | None = None
) -> None:
    """Refuse, before anything is learned or searched for, what `best_of` cannot make; arguments and errors are its own."""
    from policies.best_of import check_scorer

    if n < 1:
        raise InputError(f"--best-of {n}: at least 1 candidate is needed")
    if n == 1:
        return
    check_scorer(policy, scorer)
    if scorer == "q":
        value_of(sources)
    if scorer == "count":
        _keeping(folder)
        _demonstrations(policy, sources, data)


def _keeping(folder: Path | None) -> Path:
    """Where pseudo-counts are kept."""
    if folder is None:
        raise InputError("--scorer count keeps what it learns beside a run: give --out FOLDER")
    return folder


def _demonstrations(policy: PolicyModule, sources: Sequence[Source], data: Path | None) -> Dataset:
    """The data that pseudo-counts are learned from, with pictures of the size that the policy was trained on."""
    return seen_data(data or data_of(sources[0]), policy, "the policy")


def seen_data(root: Path | str, policy: PolicyModule, name: str) -> Dataset:
    """A dataset with pictures of the size that a policy was trained on.

    Raises:
        InputError: there is none at `root`.
        SpecError: it has other observations than the policy.
    """
    from demos import Dataset
    from sinew.specs import check_observation_join

    found = resized_for(policy, Dataset(root))
    check_observation_join(str(root), found.observation_spec, name, policy.spec.observation)
    return found


def resized_for(policy: PolicyModule, data: Any) -> Any:
    """A `Dataset` or `Concat` with pictures of the size that a policy was trained on."""
    wanted, given = policy.spec.observation, data.observation_spec
    shapes = {wanted[key].shape for key in wanted.images}
    return data.resized(min(shapes)[0]) if given.images and shapes - {given[key].shape for key in given.images} else data


def demonstrations(root: Path | str, policy: PolicyModule, name: str) -> Dataset:
    """A dataset that a policy can be improved with; where it does not tell what actions mean, as one of LeRobot, width and rate count.

    Raises:
        InputError: there is none at `root`.
        SpecError: it has other observations or actions than the policy.
    """
    from sinew.specs import check_action_join

    data, wanted = seen_data(root, policy, name), policy.spec.action
    if data.bounds_are_told:
        check_action_join(str(root), data.action_spec, name, wanted)
    elif (data.action_spec.dim, data.action_spec.rate_hz) != (wanted.dim, wanted.rate_hz):
        given, asked = (f"{spec.dim} numbers at {spec.rate_hz:g} Hz" for spec in (data.action_spec, wanted))
        raise SpecError(f"{root} and {name} disagree on the action: {given} against {asked}")
    return data


def counts_of(
    policy: PolicyModule, sources: Sequence[Source], weights: Sequence[float], folder: Path | None, data: Path | None, progress: Progress
) -> CountNetwork:
    """Pseudo-counts of a policy over its demonstrations: those kept in the folder, or new ones where policy or data are others.

    Raises:
        InputError: the data or the folder are not known.
        SpecError: the data do not fit the policy.
    """
    from policies.counts import CountConfig, fit_counts, load_counts, save_counts
    from sinew.config import to_json
    from sinew.rundir import write_json

    demonstrations, config = _demonstrations(policy, sources, data), CountConfig()
    made_of = {
        "data": demonstrations.content_hash(),
        "policies": [source.digest() for source in sources],
        "weights": list(weights),
        "config": to_json(config),
    }
    place = _keeping(folder) / "counts" / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    if (place / "counts.json").exists():
        return load_counts(place)
    network = fit_counts(policy, demonstrations, config, progress)
    save_counts(network, place)
    write_json(place / "counts.json", made_of)  # last: what is there is whole
    return network


def data_of(source: Source) -> Path:
    """The dataset that a run was trained on, or improved with.

    Raises:
        InputError: it names none, several, or one that is not there.
    """
    name, place = named_data(source)
    if name is None:
        raise InputError(f"{source.name} does not name one dataset that it was trained on: name it with --data DIR")
    if place is None:
        raise InputError(f"{source.name} was trained on {name}, which is not there: name it with --data DIR")
    return place


def named_data(source: Source) -> tuple[str | None, Path | None]:
    """The dataset that a run names as what it was trained on, or improved with, and where that is.

    A relative path, as it was given in the folder that the run was made from, is looked for in every folder above the run first.
    """
    from sinew.rundir import read_json

    config = {} if source.run is None else read_json(source.run / "config.json")
    name = config.get("data") or config.get("demos")
    if source.run is None or not isinstance(name, str):
        return None, None
    places = (*(above / name for above in source.run.path.resolve().parents), Path(name).absolute())
    return name, next((place for place in places if (place / "meta/info.json").exists()), None)


def value_of(sources: Sequence[Source]) -> Value:
    """The value of a chunk's first action, corrected as it would be executed, by the critics that an improved run keeps.

    Raises:
        InputError: it is not one improved run, or it keeps no critics.
    """
    import torch

    from policies import Residual
    from rl.checkpoint import load_module_state, read_state
    from rl.residual import STATE_FILE, ResidualConfig, decode, make_learner, propose
    from sinew.config import from_json

    source = sources[0]
    if len(sources) > 1 or source.run is None or not isinstance(source.policy, Residual) or not (source.run / STATE_FILE).exists():
        names = ", ".join(s.name for s in sources)
        raise InputError(f"--scorer q ranks by the critics of one run that sinew improve made; {names} has none: rank by count")
    if "correct" in source.policy.base.spec.capabilities:
        raise InputError(f"--scorer q: {source.name} corrects what already corrects, which its critics do not see: rank by count")
    tensors, numbers = read_state(source.run / STATE_FILE)
    config = from_json(ResidualConfig, numbers["config"], f"{source.run / STATE_FILE}: config")
    actor = copy.deepcopy(source.policy.actor).requires_grad_(True)
    learner = make_learner(actor, source.policy.observation_dim, source.policy.spec.action_dim, config)
    load_module_state("critic", learner.critic, tensors)

    def value(features: Tensor, chunks: Tensor) -> Tensor:
        with torch.no_grad():
            frames = {"features": features, "base_action": chunks[:, 0]}
            executed = decode(frames, propose(actor, frames))
            return learner.critic(learner.critic_input(frames, executed)).amin(0)

    return value
