"""What `sinew deploy` prints at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a console: success, executor, cadence with what made it late, observations, stops, and why it ended."""
    success, report = result["success"], result["report"]
    if success:
        low, high = success["wilson95"]
        yield f"{result['run']} on {result['task']} over {result['robot']}: {success['k']}/{success['n']}, 95 % in [{low:.1%}, {high:.1%}]"
    yield from _executor(result["executor"], report["readiness"])
    if result["prepared"]:
        from policies.warmup import in_words

        yield in_words(result["prepared"])
    for name in ("policy", "controller"):
        yield _cadence(name, report[name])
    for key, seen in report["policy"]["observations"].items():
        wrong = ", ".join(f"{name} {count}" for name, count in seen.items() if name != "oldest_ms")
        if wrong:
            yield f"{key}: {wrong} ticks; the oldest used was {seen['oldest_ms']:g} ms old"
    yield from _stops(report["controller"]["stops"])
    ends = [e for e in report["episodes"] if e["ended_by"].startswith("no ")]
    if ends:
        yield f"{len(ends)} episodes ended because something stayed away: {', '.join(e['ended_by'] for e in ends)}"
    if result["recorded"]:
        yield f"recorded into {result['recorded']}"
    if result["stopped"]:
        yield f"[bold]stopped for safety:[/bold] {report['why']}"


def _executor(executor: Mapping[str, Any], readiness: Mapping[str, Any]) -> Iterator[str]:
    if executor["mode"] != "sync":
        taken = executor["latency_ms"]["p95"]
        latency = "" if taken is None else f" (a chunk takes {taken:g} ms at p95)"
        lost = f", {executor['lost_chunks'] + executor['old_chunks']} chunks lost or too old" * bool(
            executor["lost_chunks"] + executor["old_chunks"]
        )
        yield f"executor {executor['mode']}, delay {executor['delay']} ticks{latency}, held for {executor['held_ticks']} ticks{lost}"
    elif readiness.get("p95_ms") is not None:
        yield f"a chunk takes {readiness['p50_ms']:g} ms, {readiness['p95_ms']:g} at p95, of {readiness['budget_ms']:g}"


def _cadence(name: str, cadence: Mapping[str, Any]) -> str:
    achieved = cadence["achieved_hz"]
    rate = f"{achieved:.2f} of {cadence['rate_hz']:g} Hz" if achieved else f"{cadence['rate_hz']:g} Hz"
    problems = [f"{cadence['late_ticks']} late ticks"] * bool(cadence["late_ticks"])
    problems += [f"{cadence['missed_deadlines']} missed deadlines"] * bool(cadence["missed_deadlines"])
    due = ", ".join(f"{stage} {count}" for stage, count in cadence["due_to"].items())
    return f"{name} {rate} over {cadence['ticks']} ticks" + "".join(f", {p}" for p in problems) + (f" (due to: {due})" if due else "")


def _stops(stops: Mapping[str, Any]) -> Iterator[str]:
    named = {
        "e_stop_to_command_ms": "from the e-stop to the first braking command",
        "last_target_to_hold_ms": "from the last target to the hold",
        "command_to_standstill_ms": "from there to standstill",
    }
    told = [f"{stops[key]:g} ms {what}" for key, what in named.items() if stops.get(key) is not None]
    if told:
        yield f"{stops['count']} stops, at most {', '.join(told)}"
