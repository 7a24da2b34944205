"""`sinew improve --actors N`: worlds in processes of their own, and what such a process runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinew.errors import InputError
from sinew.progress import Progress

if TYPE_CHECKING:
    from rl.outpost import Outpost
    from rl.source import Source
    from sinew.cli.improve import Args
    from sinew.cli.improve_methods import Learn
    from sinew.protocols import VecEnv
    from sinew.rundir import RunDir

METHODS = ("residual", "decorator", "ibrl", "dsrl", "dsrl-grad", "dsrl-sac", "rlpd", "sac")
"""Methods whose acting and learning may be apart."""
REMEMBER = ("residual", "decorator", "ibrl", "dsrl", "dsrl-grad", "rlpd")
"""Those of them that demonstrations are mixed into."""
MODULE = "sinew.cli.improve_actors"


def described(args: Args) -> dict[str, Any]:
    """What a run's config says of its actors; nothing where there are none.

    Raises:
        InputError: the method acts and learns in turns, or options do not go together.
    """
    if args.actors < 0 or (args.address is not None and not args.actors):
        raise InputError(f"--actors {args.actors}: give the number of processes that act, 1 or more, and 0 for none beside this one")
    if args.actors and args.method not in METHODS:
        raise InputError(f"--actors {args.actors}: {args.method} acts and learns in turns; {', '.join(METHODS)} may do both at once")
    if args.learners < 1 or (args.learners > 1 and args.address is None) or args.actors % args.learners:
        raise InputError(f"--learners {args.learners}: give --address, where they are, and --actors a multiple of it; 1 learns here")
    return {"actors": args.actors, **({"learners": args.learners} if args.learners > 1 else {})} if args.actors else {}


@contextmanager
def reached(args: Args) -> Iterator[None]:
    """Ray, where --address says that it is, for as long as the context lasts; nothing without --address.

    Raises:
        InputError: there is none.
        MissingDependency: Ray is not installed.
    """
    if args.address is None:
        yield
        return
    from rl.on_ray import connect

    ray, mine = connect(args.address)
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


@contextmanager
def worlds(args: Args, env: VecEnv, run: RunDir) -> Iterator[VecEnv | Source]:
    """What a method is given to learn in: the worlds here, or those of actors, which end with the context.

    Args:
        args: of the command line.
        env: worlds in this process; where there are actors they say only what the others are like.
        run: the run, which keeps what the actors have to say.
    """
    if not args.actors:
        yield env
        return
    with ExitStack() as stack:
        group = None
        if args.learners > 1:
            from rl.on_ray import learners

            told = {"args": tell(args), "learners": args.learners, "actors": args.actors, "address": args.address}
            group = stack.enter_context(learners(str(args.address), args.learners, f"{MODULE}:learn", told))
        source = _source(args, env, run, args.actors // args.learners, args.address)
        stack.callback(source.close)
        source.group = group or source.group
        yield source


def _source(args: Args, env: VecEnv, run: RunDir, actors: int, address: str | None) -> Source:
    from rl.crew import Crew, CrewConfig

    config, told = CrewConfig(actors=actors), tell(args)
    if address is not None:
        from rl.on_ray import RayCrew

        return RayCrew(run, config, env.num_envs, env.action_spec, address, f"{MODULE}:act", {"args": told})

    def launch(place: int, endpoint: Path, log: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", MODULE, str(endpoint), str(place), json.dumps(told)]
        with open(log, "ab") as file:  # in a session of its own: Ctrl-C is for the learner, which tells its actors to end
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)

    return Crew(run, config, env.num_envs, env.action_spec, launch)


def tell(args: Args) -> dict[str, Any]:
    """Arguments as JSON, for an actor to read."""
    from sinew.config import to_json

    demos = None if args.demos is None else str(Path(args.demos).absolute())
    run = str(args.run) if str(args.run).startswith("hf:") else str(Path(args.run).absolute())
    reward = args.reward if args.reward in ("sparse", "shaped") else str(Path(args.reward).absolute())
    randomise = None if args.randomise is None else str(args.randomise.absolute())
    alone = {"randomise": randomise, "actors": 0, "learners": 1, "address": None, "json": False, "with_parent": False}
    return to_json(args) | {"reward": reward, "run": run, "out": str(args.out.absolute()), "demos": demos, **alone}


def act(place: int, told: Mapping[str, Any], outpost: Any) -> Any:
    """Make worlds and method of `{"args": tell(…)}` and act for the learner behind an outpost.

    Args:
        place: number of this actor.
        told: arguments.
        outpost: (worlds) → the outpost.
    """
    env, learn = build(told["args"])
    try:
        return learn(outpost(env), None, None, Progress())  # type: ignore[arg-type]  # an outpost needs neither run nor gate
    finally:
        env.close()


def learn(rank: int, told: Mapping[str, Any], group: Any) -> None:
    """Learn beside the command's process, with actors, replay and checkpoint of this learner's own.

    Args:
        rank: number of this learner, from 1.
        told: `{"args": tell(…), "learners": …, "actors": …, "address": …}`.
        group: all learners.
    """
    from sinew.rundir import RunDir

    args, env, learn = _made(told["args"], demos=True)
    run = RunDir.create(args.out / "learners" / str(rank), told)
    source = _source(args, env, run, told["actors"] // told["learners"], told["address"])
    source.group = group
    try:
        learn(source, run, dict, Progress())  # type: ignore[arg-type]  # the first learner evaluates for all
    finally:
        source.close()
        env.close()


def build(told: Mapping[str, Any]) -> tuple[VecEnv, Learn]:
    """Worlds and method as the learner has them, without demonstrations, which only it needs."""
    return _made(told, demos=False)[1:]


def _made(told: Mapping[str, Any], demos: bool) -> tuple[Args, VecEnv, Learn]:
    import torch

    from policies.parallel import own_device
    from sinew.cli.assembly import open_source
    from sinew.cli.improve import Args, _interface, _own_demos, _practice
    from sinew.cli.improve_methods import METHODS as MAKERS

    torch.set_num_threads(1)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    values |= {"out": Path(told["out"])} | {name: Path(told[name]) if told[name] else None for name in ("demos", "randomise")}
    args = Args(**values)
    source = open_source(args.run, args.task, args.action)
    interface = _interface(source.policy, args.task or source.task())
    recorded = (args.demos or _own_demos(source, args.method)) if demos and args.method in REMEMBER else None
    method = MAKERS[args.method](source.policy, interface, args, recorded, own_device(args.device))
    return args, _practice(interface, args, method.config.gamma, _say_of_reward), method.prepare()


def _say_of_reward(text: str) -> None:
    """What an actor's reward has to say goes to the actor's log, where the learner finds it (`sinew.cli.reward_heard`)."""
    from sinew.cli.reward_heard import IN_LOG

    print(f"{IN_LOG}{text}", file=sys.stderr, flush=True)


class Told(Progress):
    """Says what happens on standard error, which is the actor's log."""

    def note(self, text: str) -> None:
        """One line."""
        print(text, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Act for the learner that started this process: endpoint's file, place, arguments."""
    from rl.link import Link
    from rl.outpost import Outbox, Outpost
    from sinew.errors import SinewError

    endpoint, place, told = Path(argv[0]), int(argv[1]), json.loads(argv[2])
    progress = Told()
    outbox = Outbox()
    link = Link(outbox, endpoint, place, progress)

    def outpost(env: VecEnv) -> Outpost:
        return Outpost(env, outbox, place)

    try:
        with link:
            act(place, {"args": told}, outpost)
    except SinewError as e:
        progress.note(f"actor {place}: {e}")
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
