"""Have a model write a reward as code, tried on recorded episodes before anything is learned from it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinew.cli.reward_learned import RewardArgs, check_out
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from rewards.generated.generate import Request
    from rewards.vlm import VLM

RECORDED = "recorded:"


@dataclass(frozen=True, kw_only=True)
class Args(RewardArgs):
    """Have a model write a reward as code, tried on recorded episodes before anything is learned from it."""

    vlm: str
    """Address of a server that speaks chat completions, as http://localhost:8000/v1, or recorded:DIR for answers kept before."""
    data: Path
    """Dataset with successes, and failures if there are any, that code is tried on."""
    model: str = "default"
    """Name of the model on the server."""
    record: Path | None = None
    """Folder where answers are kept, to be used again as recorded:DIR."""
    task: str | None = None
    """Simulated task whose text is given to the model; the dataset's own text if left out."""
    task_text: str | None = None
    """What is to be done, in words of your own."""
    image: tuple[Path, ...] = ()
    """Pictures of the scene, for models that see."""
    form: Literal["potential", "reward"] = "potential"
    """potential cannot change which policy is best; reward pays for steps, and may be exploited."""
    candidates: int = 4
    """Answers in each round; the best by the check is kept."""
    rounds: int = 2
    """Rounds; from the second on the model is told how its best code did."""
    feedback: tuple[str, ...] = ()
    """What you saw that shall be different, in words."""
    refine: tuple[Path, ...] = ()
    """Reward files of before to be improved; of several the one whose run succeeded most."""
    run: tuple[Path, ...] = ()
    """Runs of sinew improve that learned with them, in the same order: what each part did in training is told to the model."""


def run(args: Args) -> dict[str, Any]:
    """Ask, try, and write the reward file."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return make(args, progress)


def make(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """The same, telling `progress`.

    Raises:
        InputError: no usable answer, or none that passes the check: the reasons are told and nothing is written.
    """
    from demos import Dataset
    from rewards import files
    from rewards.generated import judge
    from rewards.generated.fields import fields_of
    from rewards.generated.generate import GenerateConfig, generate
    from rewards.generated.reward import GeneratedSettings
    from sinew.errors import InputError

    started = time.monotonic()
    check_out(args.out)
    config = GenerateConfig(candidates=args.candidates, rounds=args.rounds, form=args.form, seed=args.seed)
    data = Dataset(args.data)
    asked = request(args, data)
    recorded = judge.read(data, fields_of(data.observation_spec))
    model = open_model(args.vlm, args.model, args.record)
    found = generate(model, asked, recorded, config, progress)
    good = [c for c in found if c.judgement is not None and c.judgement.passed]
    if not good:
        best = found[0]
        why = best.problem or "; ".join(best.judgement.problems if best.judgement else ())
        raise InputError(f"none of {len(found)} candidates passed; the best: {why}. Ask for more --candidates, or say more with --feedback")
    made = {"model": model.model, "task_text": asked.task_text, "data": str(args.data), "hash": data.content_hash(), "seed": args.seed}
    made |= {"feedback": list(args.feedback), "refined": [str(path) for path in args.refine]}
    written = []
    for i, candidate in enumerate(good):
        path = args.out if i == 0 else args.out.with_name(f"{args.out.stem}-{i + 1}.json")
        assert candidate.judgement is not None
        files.save(path, "code", GeneratedSettings(source=candidate.source, weight=args.weight), {**made, "check": _figures(candidate)})
        written.append(str(path))
    refused = [c.problem for c in found if c.problem]
    return {
        "out": str(args.out), "written": written, "candidates": len(found), "passed": len(good), "refused": refused,
        "check": _figures(good[0]), "source": good[0].source, "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def request(args: Args, data: Any) -> Request:
    """What is asked of the model, from the arguments and the dataset."""
    from rewards.generated.generate import Request
    from sinew.errors import InputError

    if args.run and len(args.run) != len(args.refine):
        raise InputError(f"--run names {len(args.run)} runs for {len(args.refine)} files of --refine: give one each, in the same order")
    text = args.task_text or (_text_of(args.task) if args.task else "") or next(iter(data.tasks), "")
    if not text:
        raise InputError(f"{args.data} does not say what its task is: give --task-text")
    earlier, training = _earlier(args.refine, args.run)
    images = tuple(_picture(path) for path in args.image)
    return Request(text, data.observation_spec, data.action_spec, earlier, args.feedback, training, images)


def open_model(where: str, model: str, record: Path | None = None) -> VLM:
    """The model that an address or a folder of recorded answers stands for.

    Raises:
        InputError: it is neither.
    """
    from rewards.vlm import OpenAICompatible, RecordedVLM

    if where.startswith(RECORDED):
        return RecordedVLM(Path(where.removeprefix(RECORDED)))
    asked = OpenAICompatible(base_url=where, model=model)
    return asked if record is None else RecordedVLM(record, asked)


def _text_of(task: str) -> str:
    import sim

    return sim.make_interface(task).task_text


def _earlier(refine: tuple[Path, ...], runs: tuple[Path, ...]) -> tuple[str, str]:
    """Code to be improved, of several the one whose run succeeded most, and what it did in training."""
    from rewards import files
    from rewards.generated import judge, prompt
    from rewards.generated.reward import GeneratedSettings
    from sinew.errors import InputError
    from sinew.rundir import RunDir

    best, earlier, training = -1.0, "", ""
    for i, path in enumerate(refine):
        settings: Any
        kind, settings = files.load(path)
        if not isinstance(settings, GeneratedSettings):
            raise InputError(f"--refine {path} is a reward of kind {kind}; only code can be refined")
        lines = list(RunDir.open(runs[i]).metrics()) if runs else []
        success = prompt.success_curve(lines)
        if (last := max(success, default=0.0)) > best:
            best, earlier = last, settings.source
            training = prompt.training_figures(judge.tenths(lines), success) if lines else ""
    return earlier, training


def _picture(path: Path) -> np.ndarray:
    import cv2

    from sinew.errors import InputError

    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if pixels is None:
        raise InputError(f"--image {path}: there is no picture of a kind that can be read, as PNG or JPEG")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _figures(candidate: Any) -> dict[str, Any]:
    from sinew.config import to_json

    return to_json(candidate.judgement)


def show(result: dict[str, Any], console: Console) -> None:
    """The code and how it did."""
    from rich.markup import escape

    check = result["check"]
    console.print(escape(result["source"]), highlight=False)
    console.print(f"{result['out']}: best of {result['candidates']}, {result['passed']} passed, in {result['seconds']:g} s")
    console.print(f"along {check['successes']} successes the value goes with time: rank correlation {check['rank_correlation']:.2f}")
    if check["auc"] is not None:
        low, high = check["auc95"]
        console.print(f"a success scores above a failure with {check['auc']:.3f} ({low:.2f} to {high:.2f}, {check['failures']} failures)")
    for problem in result["refused"]:
        console.print(f"refused: {escape(problem)}", highlight=False)
    console.print(f"learn with it: sinew improve RUN --reward {result['out']} --out RUN2", highlight=False, soft_wrap=True)
