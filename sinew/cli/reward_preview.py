"""Look at a reward: a page with what it says of recorded episodes, with pictures, curves and films."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from sinew.errors import InputError
from sinew.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

    from demos import Dataset
    from rewards.inspection import Episode, Inspection
    from sinew.cli.reward_pictures import Film
    from sinew.protocols import Reward

PICTURES = 6
"""Of an episode on the sheet."""
POINTS = 41
"""Of the curves on the page."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Look at a reward: a page with what it says of recorded episodes, with pictures, curves and films."""

    reward: Annotated[str, tyro.conf.Positional]
    """Reward file; or sparse or shaped."""
    data: Path
    """Dataset of the task, with failures among its episodes."""
    out: Path | None = None
    """Folder for preview.html, pictures and films; <reward>-preview beside the reward file if left out."""
    episodes: int = 64
    """Episodes that are looked at, half of them failures where there are enough."""
    films: int = 4
    """Episodes of which there is a film, half of them failures."""
    camera: str | None = None
    """Camera of the pictures; one that stands still if left out."""
    seed: int = 0
    """Of the choice of episodes."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> dict[str, Any]:
    """Play episodes through the reward, and draw what it says."""
    from sinew.cli.console_progress import ConsoleProgress

    with ConsoleProgress() as progress:
        return preview(args, progress)


def preview(args: Args, progress: Progress = SILENT) -> dict[str, Any]:
    """Write the page.

    Raises:
        RewardUnavailable: the data lacks what the reward looks at.
        InputError: no success among the episodes, or no such camera.
    """
    from demos import Dataset
    from rewards.inspection import inspect
    from sinew.cli.reward_drawing import extent as extent_of
    from sinew.cli.reward_drawing import plot, sheet
    from sinew.cli.reward_pictures import strip
    from sinew.cli.reward_recorded import builder, episodes, load
    from sinew.cli.video import write_mp4
    from sinew.rundir import atomic_write

    if args.films < 0:
        raise InputError(f"--films {args.films}: give 0 or more")
    data = Dataset(args.data)
    out = args.out or Path(args.reward).with_name(f"{Path(args.reward).stem}-preview")
    build = builder(args.reward, data, progress.note)
    vectors = [key for key in data.observation_spec if key not in data.observation_spec.images]
    progress.note("playing the episodes")
    found = inspect(data, episodes(data, args.episodes, args.seed), build, vectors)
    out.mkdir(parents=True, exist_ok=True)
    low, high = extent_of(found.curves)
    shown = choose(found, args.films)
    films, rows = [], []
    progress.start("films", len(shown))
    for i in shown:
        episode, curve = found.episodes[i], found.curves[i]
        drawn = drawn_film(data, episode, args.camera, build)
        if drawn is None:
            break
        name = f"episode-{episode.index}-{'success' if episode.success else 'failure'}.mp4"
        films.append(name)
        rows.append((f"episode {episode.index}", episode.success, list(strip(drawn, PICTURES)), curve))
        write_mp4(out / name, [_beside(p, curve, k, low, high, episode.success) for k, p in enumerate(drawn)], data.fps)
        progress.advance(1)
    if shown and not films:
        progress.note("no pictures: the dataset has none and its episodes cannot be played again here; collect with --cameras front")
    _png(out / "curves.png", plot(found.curves, [e.success for e in found.episodes], meaning(found)))
    if rows:
        _png(out / "sheet.png", sheet(rows, low, high))
    kind, asked = load(args.reward)[0], []
    for view in sorted(Path(args.reward).parent.glob(f"{Path(args.reward).stem}-view*.png")):
        atomic_write(out / view.name, view.read_bytes())
        asked.append(view.name)
    legend = getattr(build(1, 1.0), "legend", "") if rows else ""
    atomic_write(out / "preview.html", page_of(args, kind, found, films, bool(rows), asked, legend))
    return {
        "reward": args.reward, "kind": kind, "page": str(out / "preview.html"), "films": films,
        "findings": [asdict(f) for f in found.findings], "passed": not found.problems,
    }  # fmt: skip


def choose(found: Inspection, most: int) -> list[int]:
    """Episodes to show: a usual and the worst success, the failure that gets furthest and a usual one, then more of each."""
    ends = [float(c[-1]) for c in found.curves]
    order = sorted(range(len(ends)), key=lambda i: ends[i])
    good = [i for i in order if found.episodes[i].success]
    bad = [i for i in reversed(order) if not found.episodes[i].success]
    wanted = [g[k] for g in (good, bad) for k in ((len(g) // 2, 0) if g is good else (0, len(g) // 2)) if g]
    spread = [i for pair in zip(good, bad, strict=False) for i in pair]
    half = max(1, most // 2) if bad else most
    chosen = list(dict.fromkeys([*wanted, *spread, *good]))
    picked = [i for i in chosen if found.episodes[i].success][:half] + [i for i in chosen if not found.episodes[i].success][: most - half]
    return picked[:most]


def drawn_film(data: Dataset, episode: Episode, camera: str | None, build: Callable[[int, float], Reward]) -> tuple[np.ndarray, ...] | None:
    """Pictures of an episode with what the reward looks for drawn on them, where it has `overlay`; None without pictures."""
    from rewards.replay import play
    from sinew.cli.reward_pictures import film

    found: Film | None = film(data, episode, camera)
    if found is None:
        return None
    reward = build(1, 1.0)
    overlay: Any = getattr(reward, "overlay", None)
    if overlay is None or found.view is None:
        return found.pictures
    view, pictures = found.view, list(found.pictures)

    def draw(step: int, rows: np.ndarray, obs: Mapping[str, Any]) -> None:
        pictures[step] = overlay(pictures[step], view, obs, 0)

    play(data, [episode.frames], reward, on_step=draw)
    return tuple(pictures)


def page_of(args: Args, kind: str, found: Inspection, films: list[str], pictures: bool, asked: list[str], legend: str = "") -> str:
    """The page; `asked` are pictures as the model saw them that proposed the reward, `legend` what is drawn on those of episodes."""
    from sinew.cli.report_charts import Line, line_chart
    from sinew.cli.report_style import page, section

    outcome = [e.success for e in found.episodes]
    lines = [
        Line(name=f"{name} ({outcome.count(ok)}): median, 10 to 90 %", style=style, **_spread(found, ok))
        for name, ok, style in (("successes", True, "deployed"), ("failures", False, "base"))
        if ok in outcome
    ]
    chart = line_chart(lines, x_label="share of the episode (%)", y_label=meaning(found))
    bad = found.problems
    verdict = "can be learned from" if not bad else "should not be learned from as it is"
    header = (
        f'<header><p class="kicker">reward · {escape(kind)}</p><h1>{escape(Path(args.reward).name)} '
        f'<span class="verdict {"worse" if bad else "better"}">{verdict}</span></h1>'
        f'<p class="lead">On {outcome.count(True)} successes and {outcome.count(False)} failures of {escape(str(args.data))}.</p></header>'
    )
    marks = {True: ("yes", "better"), False: ("no", "worse"), None: ("–", "")}
    items = "".join(f'<dt class="verdict {marks[f.holds][1]}">{marks[f.holds][0]}</dt><dd>{escape(f.text)}</dd>' for f in found.findings)
    parts = [header, section("Verdicts", f"<dl>{items}</dl>"), section("Success against failure", chart)]
    if pictures:
        image = '<img src="sheet.png" alt="pictures of episodes with their values" style="width:100%;border-radius:8px">'
        words = f"<p>{escape(legend)}</p>" if legend else ""
        parts.append(section("Episodes, with the value at each picture", image + words))
        videos = "".join(
            f'<figure><video src="{name}" controls autoplay muted loop playsinline></video><figcaption>{name[:-4]}</figcaption></figure>'
            for name in map(escape, films)
        )
        parts.append(
            section("Films", f'<div class="videos" style="grid-template-columns:repeat(auto-fit,minmax(420px,1fr))">{videos}</div>')
        )
    if asked:
        views = "".join(f'<img src="{escape(name)}" alt="as the model saw it" style="width:100%">' for name in asked)
        parts.append(section("What the model was shown that proposed it", f'<div class="columns">{views}</div>'))
    parts.append("<footer>Written by Sinew. The reward was not told how the episodes end.</footer>")
    return page(f"Reward {Path(args.reward).name}", "\n".join(parts))


def meaning(found: Inspection) -> str:
    """What curves show."""
    return "paid so far, success not counted" if found.sums else "paid at this step"


def _spread(found: Inspection, ok: bool) -> dict[str, Any]:
    """Median and the band of 10 to 90 % of curves over the share of the episode."""
    share = np.linspace(0, 1, POINTS)
    curves = [c for c, e in zip(found.curves, found.episodes, strict=True) if e.success == ok]
    table = np.stack([np.interp(share, np.linspace(0, 1, len(c)), c) for c in curves])
    low, middle, high = np.quantile(table, (0.1, 0.5, 0.9), axis=0)
    return {
        "points": list(zip((100 * share).tolist(), middle.tolist(), strict=True)),
        "band": list(zip(low.tolist(), high.tolist(), strict=True)),
    }


def _beside(picture: np.ndarray, curve: np.ndarray, frame: int, low: float, high: float, success: bool) -> np.ndarray:
    from sinew.cli.reward_drawing import beside

    return beside(picture, curve, frame, low, high, success)


def _png(path: Path, image: np.ndarray) -> None:
    import cv2

    from sinew.rundir import atomic_write

    atomic_write(path, cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())


def show(result: dict[str, Any], console: Console) -> None:
    """Where the page is, and what does not hold."""
    for finding in result["findings"]:
        if finding["holds"] is False:
            console.print(f"no  {finding['text']}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{result['page']}: open it in a browser; {len(result['films'])} films beside it", highlight=False, soft_wrap=True)
