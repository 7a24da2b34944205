"""`sinew <verb>`: finds the verb's module, parses its arguments, turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import math
import os
import sys
from types import ModuleType
from typing import Any

VERBS = {
    "demo": "the whole loop on this machine: collect, train, evaluate, improve, deploy, report",
    "doctor": "what works on this machine, what is missing, and the command that adds it",
    "tasks": "the simulated tasks with their observations and actions",
    "collect": "record demonstrations of a task as a LeRobotDataset v3",
    "data": "look at, check, repair, split, merge, edit, replay or convert a dataset or a ROS 2 bag; record a bag",
    "train": "train a policy on a dataset",
    "train-rl": "learn a task in simulation from nothing, in many worlds at once",
    "eval": "success rate of a run on fixed seeds, with its interval",
    "compare": "two runs on the same seeds: is one better, and how sure is that",
    "distill": "distil a trained policy into one that samples in a single step",
    "improve": "improve a trained policy, in simulation or on a robot: correct its actions, choose its noise, and more",
    "sim": "make simulation and robot agree: identify a robot from its recordings, look at what a randomisation draws",
    "reward": "dense rewards as files: propose one from a sentence and a picture, look at it, check it",
    "calibrate": "where cameras are: a board to print, the lens, the camera on or beside the robot, and whether it is still true",
    "robot": "serve a simulated robot over DDS; robots as data: robot list, show, add",
    "deploy": "run a policy on a robot, through the safety gate",
    "serve": "serve a policy to robots and evaluations elsewhere, over websockets",
    "export": "write a policy as ONNX or torch.export graphs, checked against it",
    "bench": "measure ours beside the peer's: policies, learning, simulation, data, the control loop, and more",
}
"""Every verb with the line that `sinew --help` shows; each has a module of that name, with _ for -, beside this file."""

SUBVERBS = {f"robot {name}": "robot_add" for name in ("add", "list", "show")}
"""Verbs of two words, with the modules that they have instead of the first word's own."""

STOPPED = 130


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 done; 2 wrong input; 3 a missing optional dependency; 4 stopped for safety; 130 interrupted. A defect of ours
        is not caught: it ends with its traceback and 1.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from sinew import __version__

        print(f"sinew {__version__}")
        return 0
    from sinew.errors import SinewError, unknown

    try:
        if argv[0] not in VERBS:
            raise unknown("verb", argv[0], VERBS)
        module = SUBVERBS.get(" ".join(argv[:2]), argv[0].replace("-", "_"))
        return run_verb(importlib.import_module(f"sinew.cli.{module}"), argv)
    except SinewError as e:
        print(f"sinew: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("sinew: stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT):
            raise
        print(f"sinew: cannot write {e.filename or 'output'}: {e.strerror}; what was written before is kept", file=sys.stderr)
        return 2


def usage() -> str:
    """The page that `sinew --help` shows."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, text in VERBS.items())
    return f"usage: sinew <verb> [arguments]\n\n{verbs}\n\nsinew <verb> --help tells a verb's arguments; --json prints one object."


def run_verb(module: ModuleType, argv: list[str]) -> int:
    """Parse the arguments of a verb and run it; with --json nothing but its result goes to standard output."""
    args = parse(module.Args, argv[1:], f"sinew {argv[0]}", module.__doc__)
    check_numbers(args)
    check_repeated(args, argv[1:])
    # Torch takes every core it sees and spins on them; a small policy on a small machine is faster with one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not args.json:
        from rich.console import Console

        result = module.run(args)
        module.show(result, Console())
        return exit_code(module, result)
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        result = module.run(args)
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks
        print(json.dumps(result, allow_nan=False), file=out)
    return exit_code(module, result)


def parse(kind: type, words: list[str], prog: str, description: str | None) -> Any:
    """Arguments from words; `--help` is told and ends the process.

    Raises:
        InputError: they do not fit; one line, where the parser has a box.
    """
    import tyro

    from sinew.cli.whole_numbers import REGISTRY
    from sinew.errors import InputError

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=words, prog=prog, description=description, registry=REGISTRY)
    except SystemExit as e:
        if not e.code:
            raise
        raise InputError(f"{in_one_line(said.getvalue())}; {prog} --help tells its arguments") from None


def in_one_line(box: str) -> str:
    """What the parser's box says, without its frame, the help of options and where to find more of it."""
    rows = [row.strip("│|")[1:].rstrip() for row in box.splitlines() if row.startswith(("│", "|"))]
    rows = rows or box.splitlines()[1:]  # without a frame its title is a row
    parts: list[list[str]] = [[]]
    explained = True
    for row in rows:
        text = row.strip().removeprefix("Error parsing ").removesuffix("(required)").rstrip(" .")
        if set(text) in ({"─"}, {"-"}):  # drawn plainly where the terminal speaks no UTF-8
            parts.append([])
        elif explained or not row.startswith(" " * 8):
            explained = not text.startswith("--")  # an option explains itself; what has no name needs its help
            parts[-1].append(text)
    told = (" ".join(part) for part in parts if part and not part[0].startswith(("For full helptext", "Argument helptext")))
    return "; ".join(told)


def check_numbers(args: Any) -> None:
    """Refuse what no verb can use: a seed out of range, a number that is not finite.

    Raises:
        InputError: names the argument.
    """
    from sinew.cli.scenes import check_seed
    from sinew.errors import InputError

    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name.replace('_', '-')} {value}: give a finite number")
    check_seed(args.seed)


def check_repeated(args: Any, words: list[str]) -> None:
    """Refuse an option with several values that is given twice, of which all but the last would go unnoticed.

    Raises:
        InputError: names the option.
    """
    from sinew.errors import InputError

    given = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    for name, value in vars(args).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple) and given.count(option) > 1:
            times = f"{option} is given {given.count(option)} times and only the last would count"
            raise InputError(f"{times}: give all values after one {option}")


def exit_code(module: ModuleType, result: dict[str, Any]) -> int:
    """0, or what the verb makes of its result: the doctor and `data check` tell by it what they found."""
    return module.exit_code(result) if hasattr(module, "exit_code") else 0


if __name__ == "__main__":
    sys.exit(main())
