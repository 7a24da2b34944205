"""Writes `report.html`: one self-contained page that tells what a run achieved, how sure that is, and where it came from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sinew.cli.console_progress import duration
from sinew.cli.report_charts import Level, Line, interval_bar, line_chart, paired_strip, share_bar
from sinew.cli.report_loop import loop_section
from sinew.cli.report_style import page, section, table
from sinew.cli.train import times_of_a_step
from sinew.rundir import RunDir, atomic_write, read_json
from sinew.stats import BETTER, NO_EVIDENCE, WORSE, mcnemar_exact, wilson

ALPHA = 0.05
STAGES = (
    ("bc", "Behaviour cloning", "base"),
    ("improved", "Improved", "improved"),
    ("steered", "Steered", "improved"),
    ("deployed", "Deployed", "deployed"),
)
STAGE_NOTES = {
    "improved": "residual RL on the frozen base",
    "steered": "DSRL: the frozen base with chosen noise",
    "deployed": "over DDS, through the safety gate",
}
CONTROLS = (("zero_noise", "Control: base with zero noise"), ("best_fixed_noise", "Control: base with the best of 20 fixed noises"))
VIDEO_NAMES = {"base": "Behaviour cloning", **{key: name for key, name, _ in STAGES}}
FOOTER = "Written by Sinew. Intervals are Wilson 95 %; comparisons are exact McNemar tests on common seeds."


def write_report(run: RunDir | Path | str, summary: Mapping[str, Any], provenance: Mapping[str, Any] | None = None) -> Path:
    """Write report.html into a run.

    Args:
        run: the run or its folder; videos/*.mp4 and provenance.json in it, or in the runs that lie in it, are told.
        summary: what was achieved, all of it optional: "task"; "demos" {"episodes", "successes"}; "bc", "improved", "steered",
            "deployed" {"k", "n", "wilson95", "seeds", "successes": [bool]}; "controls" {"zero_noise", "best_fixed_noise"},
            alike; "paired" {"p", "wins", "losses"}; "curves" {"bc": [[step, loss], ...], "rl": [[env steps, success rate,
            episodes], ...]}; "training_times" {"load_s", "preprocess_s", "update_s", "samples_per_s"}; "deploy": the deployed loop's
            report; "stages" {name: seconds}; "wall_s".
        provenance: told instead of the run's own.

    Returns:
        Path of the file, written atomically.
    """
    run = run if isinstance(run, RunDir) else RunDir(run)
    source = provenance or recorded_provenance(run)
    videos = [p.relative_to(run.path) for pattern in ("videos/*.mp4", "*/videos/*.mp4") for p in run.path.glob(pattern)]
    parts = [
        _header(summary, source), _tiles(summary), _success(summary), _same_seeds(summary), _curves(summary), _videos(videos),
        loop_section(summary.get("deploy") or {}), _stages(summary), _provenance(source), f"<footer>{FOOTER}</footer>",
    ]  # fmt: skip
    path = run / "report.html"
    atomic_write(path, page(f"Sinew report: {summary.get('task', run.path.name)}", "\n".join(p for p in parts if p)))
    return path


def recorded_provenance(run: RunDir) -> dict[str, Any]:
    """The run's own provenance.json; of a run made of several, the newest one's with the seeds and inputs of all."""
    if (run / "provenance.json").exists():
        return read_json(run / "provenance.json")
    parts = {p.parent.name: read_json(p) for p in sorted(run.path.glob("*/provenance.json"))}
    if not parts:
        return {}
    newest = max(parts.values(), key=lambda p: p.get("created_unix_s", 0))
    joined = {k: {f"{name} {x}": v for name, p in parts.items() for x, v in _group(p.get(k)).items()} for k in ("seeds", "inputs")}
    return {**newest, **joined}


def claim(summary: Mapping[str, Any]) -> str:
    """One honest sentence about the improvement: what was measured, and whether it is evidence."""
    bc, improved, paired = (_group(summary.get(k)) for k in ("bc", "improved", "paired"))
    if not bc or not improved:
        return "Success rates with their intervals; no comparison was made."
    counts = f"{_count(improved)} against {_count(bc)}"
    if not paired:
        return f"Improved {counts}; the two were not compared on common seeds."
    split = f"{_split(paired)} on the same seeds, p = {p_value(paired)}"
    verdict = _verdict(paired)
    if verdict == NO_EVIDENCE:
        return f"No evidence that the improved policy differs from the base: {counts} ({split})."
    return f"The improved policy is {verdict} than the base: {counts} ({split})."


def p_value(paired: Mapping[str, Any]) -> str:
    """The p-value of a comparison, short: 0.03, 2e-13."""
    p = paired.get("p", mcnemar_exact(paired["wins"], paired["losses"]))
    return f"{p:.2f}" if p >= 0.095 else f"{p:.3f}" if p >= 0.001 else f"{p:.0e}".replace("e-0", "e-")


# ---------------------------------------------------------------- sections


def _header(summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    made = provenance.get("created_unix_s")
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(made)) if made else ""
    commit = provenance.get("commit", "")
    kicker = " · ".join(escape(str(t)) for t in ("Sinew report", day, f"commit {commit}" if commit else "") if t)
    task = escape(str(summary.get("task", "run")))
    title = f"<h1>{task}: from demonstrations to a deployed policy</h1>"
    return f'<header>\n<p class="kicker">{kicker}</p>\n{title}\n<p class="lead">{escape(claim(summary))}</p>\n</header>'


def _tiles(summary: Mapping[str, Any]) -> str:
    tiles = []
    demos = _group(summary.get("demos"))
    if demos.get("episodes"):
        kept = f", {demos['episodes'] - demos['successes']} of them failed" if "successes" in demos else ""
        tiles.append(("", str(demos["episodes"]), f"demonstrations{kept}"))
    for key, name, style in STAGES:
        group = _group(summary.get(key))
        if group.get("n"):
            tiles.append((style, f"{100 * group['k'] / group['n']:.0f} %", f"{name}, {_count(group)}"))
    if summary.get("wall_s"):
        tiles.append(("", duration(summary["wall_s"]), "wall-clock time in all"))
    cells = "".join(f'<div class="tile {style}"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for style, big, small in tiles)
    return f'<div class="tiles">{cells}</div>' if tiles else ""


def _success(summary: Mapping[str, Any]) -> str:
    controls = _group(summary.get("controls"))
    entries = [(name, STAGE_NOTES.get(key, ""), style, _group(summary.get(key))) for key, name, style in STAGES]
    entries[1:1] = [(name, "no training", "control", _group(controls.get(key))) for key, name in CONTROLS]
    rows = [_rate_row(name, note, style, group) for name, note, style, group in entries if group.get("n")]
    if not rows:
        return ""
    head = [("Policy", ""), ("k / n", "n"), ("Rate", "n"), ("Wilson 95 %", "n hide"), ("0 to 100 %", "wide")]
    return section("Success", table(head, rows, "stack"), _control_note(summary))


def _rate_row(name: str, note: str, style: str, group: Mapping[str, Any]) -> list[str]:
    low, high = _interval(group)
    rate = group["k"] / group["n"]
    small = "; ".join(t for t in (note, _seed_range(group.get("seeds") or [])) if t)
    label = f'<span class="{style}">●</span> {escape(name)}<small>{escape(small)}</small>'
    interval = f"{100 * low:.0f} to {100 * high:.0f} %"
    return [label, f"{group['k']} / {group['n']}", f"{100 * rate:.0f} %", interval, interval_bar(rate, low, high, style)]


def _control_note(summary: Mapping[str, Any]) -> str:
    """What the trivial controls say about the gain: a gain that a fixed noise gives for free is none."""
    improved = _group(summary.get("improved"))
    controls = {key: group for key, _ in CONTROLS if (group := _group(_group(summary.get("controls")).get(key))).get("n")}
    if not controls or not improved.get("n"):
        return ""
    key, best = max(controls.items(), key=lambda item: item[1]["k"] / item[1]["n"])
    name = {"zero_noise": "zero noise", "best_fixed_noise": "the best of 20 fixed noises"}[key]
    reached = f"Without any training, the base reaches {_count(best)} with {name}"
    verdict = _compare(improved, best)
    if verdict == BETTER:
        text = f"{reached}; the improved policy is better than that too, so the gain is not one the sampler gives for free."
    else:
        text = f"{reached}. There is no evidence that the improved policy is better than this control."
    return f'<p class="note">{text}</p>'


def _compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Paired where both tell their outcomes on the same seeds; else better only if the intervals do not touch."""
    if a.get("successes") and b.get("successes") and a.get("seeds") == b.get("seeds"):
        pairs = list(zip(a["successes"], b["successes"], strict=True))
        return _verdict({"wins": sum(x and not y for x, y in pairs), "losses": sum(y and not x for x, y in pairs)})
    return BETTER if _interval(a)[0] > _interval(b)[1] else NO_EVIDENCE


def _same_seeds(summary: Mapping[str, Any]) -> str:
    paired, bc, improved = (_group(summary.get(k)) for k in ("paired", "bc", "improved"))
    if not paired:
        return ""
    strip = legend = ""
    if bc.get("successes") and improved.get("successes") and bc.get("seeds") == improved.get("seeds"):
        strip = paired_strip(bc["seeds"], bc["successes"], improved["successes"])
        keys = (("win", "only improved succeeds"), ("loss", "only the base succeeds"), ("both", "both"), ("neither", "neither"))
        legend = "".join(f'<span><span class="strip"><i class="{k}"></i></span>{text}</span>' for k, text in keys)
        legend = f'<p class="legend">{legend}</p>'
    verdict = _verdict(paired)
    said = {NO_EVIDENCE: "no evidence of a difference", BETTER: "improved is better", WORSE: "improved is worse"}[verdict]
    style = "" if verdict == NO_EVIDENCE else verdict
    text = f'<p>Exact McNemar test: {_split(paired)}, p = {p_value(paired)}: <span class="verdict {style}">{said}</span>.</p>'
    return section("The same seeds, before and after", text, strip, legend)


def _curves(summary: Mapping[str, Any]) -> str:
    curves, charts = _group(summary.get("curves")), []
    if curves.get("bc"):
        line = Line(name="training loss", points=[(row[0], row[1]) for row in curves["bc"]], style="base")
        chart = line_chart([line], x_label="optimiser steps", y_label="loss", log_y=True)
        times = _group(summary.get("training_times"))
        spent = f"<p>{escape(times_of_a_step(times))}</p>" if times else ""
        charts.append(f"<div><h3>Behaviour cloning: training loss</h3>{chart}{spent}</div>")
    if curves.get("rl"):
        chart = _rl_chart(curves["rl"], _group(summary.get("bc")))
        charts.append(f"<div><h3>Residual RL: success at each gate</h3>{chart}</div>")
    return section("Learning", f'<div class="columns">{"".join(charts)}</div>') if charts else ""


def _rl_chart(rows: Sequence[Sequence[float]], bc: Mapping[str, Any]) -> str:
    points = [(row[0], row[1]) for row in rows]
    sized = all(len(row) > 2 and row[2] for row in rows)
    band = [wilson(round(row[1] * row[2]), int(row[2])) for row in rows] if sized else []
    levels = [Level(name=f"base alone, {_count(bc)}", y=bc["k"] / bc["n"])] if bc.get("n") else []
    line = Line(name="improved, with Wilson 95 %" if band else "improved", points=points, band=band, dots=True)
    return line_chart([line], levels=levels, x_label="environment steps", y_label="success", y_range=(0, 1), percent=True)


def _videos(videos: Sequence[Path]) -> str:
    """Films by scene, so that both policies stand side by side on the same seed."""
    if not videos:
        return ""
    order = list(VIDEO_NAMES)
    told = [(*_caption(path), path) for path in videos]
    told.sort(key=lambda v: (v[1].split()[:2], order.index(v[0]) if v[0] in order else len(order), str(v[2])))
    figures = []
    for kind, rest, path in told:
        name = VIDEO_NAMES.get(kind, kind)
        source = escape(path.as_posix(), quote=True)
        figures.append(
            f'<figure><video src="{source}" controls loop muted playsinline preload="metadata"></video>'
            f"<figcaption><b>{escape(name)}</b> {escape(rest)}</figcaption></figure>"
        )
    return section("Videos", f'<div class="videos">{"".join(figures)}</div>')


def _caption(path: Path) -> tuple[str, str]:
    """Kind of policy and what is seen: improved/videos/7-success.mp4 and videos/improved_seed_7_success.mp4 alike."""
    words = path.stem.replace("-", "_").split("_")
    if len(path.parts) > 2:
        kind = path.parts[0]
    else:
        kind, words = words[0], words[1:]
    return kind, " ".join(["seed", *words] if words and words[0].isdigit() else words)


def _stages(summary: Mapping[str, Any]) -> str:
    stages = _group(summary.get("stages"))
    total = sum(stages.values())
    if not total:
        return ""
    rows = [
        [
            escape(name.replace("_", " ")),
            duration(s),
            f"{100 * s / total:.0f} %" if s >= 0.005 * total else "&lt; 1 %",
            share_bar(s / total, "control"),
        ]
        for name, s in stages.items()
    ]
    return section("Where the time went", table([("Stage", ""), ("Time", "n"), ("Share", "n"), ("", "wide")], rows, "stack"))


def _provenance(provenance: Mapping[str, Any]) -> str:
    if not provenance:
        return ""
    machine = _group(provenance.get("machine"))
    command = provenance.get("command")
    cpus = f"{machine['cpus']} CPUs" if machine.get("cpus") else ""
    lines = {
        "Commit": provenance.get("commit"),
        "Command": "sinew " + " ".join(map(str, command)) if command else None,
        "Machine": ", ".join(str(v) for v in (machine.get("processor"), cpus, machine.get("system")) if v),
        "Python": provenance.get("python"),
        "Packages": ", ".join(f"{k} {v}" for k, v in _group(provenance.get("packages")).items()),
        "Seeds": ", ".join(f"{k} {v}" for k, v in _group(provenance.get("seeds")).items()),
        "Inputs": ", ".join(f"{k} {v}" for k, v in _group(provenance.get("inputs")).items()),
    }  # fmt: skip
    code = {"Commit", "Command", "Inputs"}
    items = "".join(
        f"<dt>{k}</dt><dd>{f'<code>{escape(str(v))}</code>' if k in code else escape(str(v))}</dd>" for k, v in lines.items() if v
    )
    return section("Where this came from", f"<dl>{items}</dl>")


# ---------------------------------------------------------------- parts


def _group(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _split(paired: Mapping[str, Any]) -> str:
    wins, losses = paired["wins"], paired["losses"]
    return f"{wins} {'win' if wins == 1 else 'wins'}, {losses} {'loss' if losses == 1 else 'losses'}"


def _count(group: Mapping[str, Any]) -> str:
    return f"{group['k']}/{group['n']}"


def _interval(group: Mapping[str, Any]) -> tuple[float, float]:
    low, high = group.get("wilson95") or wilson(group["k"], group["n"])
    return low, high


def _verdict(paired: Mapping[str, Any]) -> str:
    if paired.get("p", mcnemar_exact(paired["wins"], paired["losses"])) > ALPHA:
        return NO_EVIDENCE
    return BETTER if paired["wins"] > paired["losses"] else WORSE


def _seed_range(seeds: Sequence[int]) -> str:
    if not seeds:
        return ""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return "seeds " + ", ".join(map(str, seeds[:6])) + (f" and {len(seeds) - 6} more" if len(seeds) > 6 else "")
