"""The report's section on the deployed loop: cadence, latency per stage, and what the safety gate did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from sinew.cli.report_charts import histogram, number
from sinew.cli.report_style import section, table

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 440, 24, 92, 16, 8, 34
QUANTILES = ("p50", "p99", "max")
LOOP_NAMES = {"controller": "Controller: gated commands to the robot", "policy": "Policy: observation to action", "loop": "Control loop"}
COUNTS, EVENTS = ("gate_counts", "counts"), ("gate_events", "events")


def loop_section(deploy: Mapping[str, Any]) -> str:
    """HTML of the section; empty without a report.

    Args:
        deploy: JSON of the deployment's report. Any part of it with "stages_us" {name: {"p50", "p99", "max"}} is told as a
            loop, with "rate_hz", "achieved_hz", "ticks", "late_ticks", "lateness_us" and "scheduler" if they are there,
            and "histogram" {"edges_us", "counts"} of its lateness. "counts" {reason: ticks} and "events" [{"stamp_ns",
            "outcome", "reason", "detail"}], at the top or in "gate", are the gate's. "latency_us" is from measurement to
            command, "episodes" [{"seed", "success", "ended_by"}] how each went, "stopped" why it ended early.
    """
    if not deploy:
        return ""
    loops = list(_loops(deploy, "loop"))
    parts = [_facts(deploy), *(_loop(name, loop) for name, loop in loops), _gate(deploy)]
    return section("The deployed loop", *parts)


def latency_chart(stages: Mapping[str, Mapping[str, float]]) -> str:
    """SVG of p50, p99 and max of each stage on one logarithmic axis, microseconds to milliseconds."""
    rows = {name: [max(float(q[k]), 0.1) for k in QUANTILES] for name, q in stages.items() if q}
    if not rows:
        return ""
    low = 10 ** math.floor(math.log10(min(v[0] for v in rows.values())))
    high = 10 ** math.ceil(math.log10(max(v[2] for v in rows.values()) * 1.001))
    height = TOP + ROW * len(rows) + BOTTOM

    def x(us: float) -> float:
        return LEFT + math.log(us / low) / math.log(high / low) * (WIDTH - LEFT - RIGHT)

    parts = []
    for exponent in range(round(math.log10(low)), round(math.log10(high)) + 1):
        at = x(10.0**exponent)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{microseconds(10.0**exponent)}</text>')
    for i, (name, (p50, p99, most)) in enumerate(rows.items()):
        y = TOP + ROW * (i + 0.5)
        style = "control" if name == "lateness" else "deployed"
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for to, look in ((most, "opacity:.35"), (p99, "stroke-width:6")):
            parts.append(f'<line class="curve {style}" x1="{x(p50):.1f}" x2="{x(to):.1f}" y1="{y:.1f}" y2="{y:.1f}" style="{look}"/>')
        for at, radius in ((p50, 5), (most, 2.5)):
            parts.append(f'<circle class="{style}" cx="{x(at):.1f}" cy="{y:.1f}" r="{radius}"/>')
    middle, key = (LEFT + WIDTH - RIGHT) / 2, "dot p50, thick to p99, thin to max"
    parts.append(f'<text class="name" x="{middle:.0f}" y="{height - 2}" text-anchor="middle">{key}</text>')
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="latency of each stage">{"".join(parts)}</svg>'


def microseconds(us: float) -> str:
    """A time as people say it: 80 µs, 1.2 ms, 3 s."""
    if us < 1000:
        return f"{us:.3g} µs"
    return f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


# ---------------------------------------------------------------- parts


def _facts(deploy: Mapping[str, Any]) -> str:
    """Sentences on the deployment as a whole."""
    facts = []
    if deploy.get("robot"):
        facts.append(f"Robot: {deploy['robot']}.")
    latency = deploy.get("latency_us")
    if isinstance(latency, Mapping):
        told = ", ".join(f"{k} {microseconds(float(latency[k]))}" for k in QUANTILES if latency.get(k) is not None)
        facts.append(f"From the receipt of a measurement to the hand-over of the command made from it: {told}.")
    episodes = [e for e in deploy.get("episodes") or () if isinstance(e, Mapping)]
    if failed := [e for e in episodes if e.get("success") is False]:
        named = ", ".join(f"seed {e.get('seed')} ({str(e.get('ended_by', 'failure')).replace('_', ' ')})" for e in failed)
        facts.append(f"{len(failed)} of {len(episodes)} episodes failed: {named}.")
    if deploy.get("stopped"):
        facts.append(f"It was stopped before its end: {deploy['stopped']}.")
    return f"<p>{escape(' '.join(facts))}</p>" if facts else ""


def _loops(value: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every part of the report that is the cadence of a loop, with its name."""
    if "stages_us" in value or "lateness_us" in value:
        yield name, value
        return
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _loops(inner, key)


def _loop(name: str, loop: Mapping[str, Any]) -> str:
    stages = {**({"lateness": loop["lateness_us"]} if loop.get("lateness_us") else {}), **(loop.get("stages_us") or {})}
    stages = {k: v for k, v in stages.items() if v}
    facts = []
    if loop.get("rate_hz"):
        achieved = f", {loop['achieved_hz']:.4g} Hz achieved" if loop.get("achieved_hz") else ""
        facts.append(f"{loop['rate_hz']:g} Hz wanted{achieved}")
    if loop.get("ticks"):
        late = loop.get("late_ticks", 0)
        facts.append(f"{late:,} of {loop['ticks']:,} ticks late by more than a period ({100 * late / loop['ticks']:.2g}\u00a0%)")
    if loop.get("scheduler"):
        facts.append(str(loop["scheduler"]))
    head = [("Stage", ""), *((q, "n") for q in QUANTILES)]
    rows = [[escape(stage), *(microseconds(float(q[k])) for k in QUANTILES)] for stage, q in stages.items()]
    drawn = loop.get("histogram") or {}
    bars = ""
    if drawn.get("counts"):
        marks = {k: v for k, v in (loop.get("lateness_us") or {}).items() if k != "max"}
        chart = histogram(drawn["edges_us"], drawn["counts"], x_label="lateness, µs", marks=marks)
        bars = f'<h3 style="margin-top:18px">How late each tick began</h3>{chart}'
    title = LOOP_NAMES.get(name, name.replace("_", " ").capitalize())
    return (
        f'<div style="margin:14px 0 20px"><h3>{escape(title)}</h3><p class="note" style="margin-top:0">{escape(". ".join(facts))}.</p>'
        f'<div class="columns"><div>{table(head, rows)}</div><div>{latency_chart(stages)}{bars}</div></div></div>'
    )


def _gate(deploy: Mapping[str, Any]) -> str:
    inner = deploy.get("gate")
    places = [deploy, inner] if isinstance(inner, Mapping) else [deploy]
    counts = next((p[k] for p in places for k in COUNTS if isinstance(p.get(k), Mapping)), None)
    events = next((p[k] for p in places for k in EVENTS if isinstance(p.get(k), (list, tuple))), None)
    if counts is None and events is None:
        return ""
    if not counts and not events:
        return "<h3>Safety gate</h3><p>Every command passed unchanged.</p>"
    parts = ["<h3>Safety gate</h3>"]
    if counts:
        rows = [[escape(str(reason).replace("_", " ")), f"{n:,}"] for reason, n in sorted(counts.items(), key=lambda item: -item[1])]
        parts.append(table([("Reason", ""), ("Ticks", "n")], rows, "narrow"))
    if events:
        parts.append(_events(events))
    return "".join(parts)


def _events(events: Any) -> str:
    told: list[Mapping[str, Any]] = [e if isinstance(e, Mapping) else {"reason": str(e)} for e in events]
    first = next((e["stamp_ns"] for e in told if "stamp_ns" in e), 0)
    rows = []
    for e in told[:200]:
        when = f"{(e['stamp_ns'] - first) / 1e9:.2f} s" if "stamp_ns" in e else ""
        rows.append([when, *(escape(str(e.get(k, ""))) for k in ("outcome", "reason", "detail"))])
    more = f"<p class='note'>{number(len(events) - 200)} more are in the run's eval folder.</p>" if len(events) > 200 else ""
    head = [("After", "n"), ("Answer", ""), ("Reason", ""), ("Detail", "hide")]
    return f"<details><summary>The gate's answer changed {len(events)} times</summary>{table(head, rows)}{more}</details>"
