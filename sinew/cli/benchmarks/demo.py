"""The demo over several seeds: each draws its own demonstrations, weights and exploration; the test scenes are the same for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sinew.bench import Row

SEEDS = (0, 1, 2, 3, 4)
FOLDER = Path("runs/bench-demo")
"""Where the demos are kept; interrupted, the benchmark goes on."""


def rows(quick: bool) -> list[Row]:
    """Run the demo for every seed; `quick` only reads what an earlier run has finished."""
    found = []
    for seed in SEEDS:
        summary = _summary(seed, quick)
        found += _rows(seed, summary) if summary else [_missing(seed)]
    return found


def _summary(seed: int, quick: bool) -> dict[str, Any] | None:
    from sinew.cli import demo
    from sinew.cli.console_progress import ConsoleProgress
    from sinew.rundir import read_json

    out = FOLDER / str(seed)
    if quick:
        return read_json(out / "summary.json") if (out / "summary.json").exists() else None
    with ConsoleProgress(demo.PLAN_S) as progress:
        return demo.demo(demo.Args(out=out, seed=seed), progress, progress.phase)


def _missing(seed: int) -> Row:
    return Row(name=f"seed {seed}", unit="%", ours=None, peer="not run yet: takes minutes, leave out --quick")


def _steered(seed: int, summary: dict[str, Any]) -> list[Row]:
    """Latent steering, where the demo had it beside."""
    if "steered" not in summary:
        return []
    told, p = summary["steered"], summary["steered_paired"]["p"]
    bc = 100 * summary["bc"]["k"] / summary["bc"]["n"]
    peer = f"behaviour cloning, McNemar p = {p:.1g}"
    return [Row(name=f"seed {seed}: steered by DSRL", unit="%", ours=100 * told["k"] / told["n"], peer=peer, peer_value=bc)]


def _rows(seed: int, summary: dict[str, Any]) -> list[Row]:
    def rate(part: dict[str, Any]) -> float:
        return 100 * part["k"] / part["n"]

    bc, improved, deployed = rate(summary["bc"]), rate(summary["improved"]), rate(summary["deployed"])
    zero, fixed = rate(summary["controls"]["zero_noise"]), rate(summary["controls"]["best_fixed_noise"])
    better = summary["paired"]["verdict"] == "better"
    p = f"behaviour cloning, McNemar p = {summary['paired']['p']:.1g}"
    minutes = summary["wall_s"] / 60
    n, m = summary["bc"]["n"], summary["deployed"]["n"]
    return [
        Row(name=f"seed {seed}: behaviour cloning, n = {n}", unit="%", ours=bc, target="30 to 75", holds=30 <= bc <= 75),
        Row(name=f"seed {seed}: same, zero noise", unit="%", ours=zero),
        Row(name=f"seed {seed}: same, best of 20 fixed noises", unit="%", ours=fixed),
        Row(
            name=f"seed {seed}: improved",
            unit="%",
            ours=improved,
            peer=p,
            peer_value=bc,
            target=">= 95, better",
            holds=improved >= 95 and better,
        ),
        *_steered(seed, summary),
        Row(name=f"seed {seed}: improved, deployed, n = {m}", unit="%", ours=deployed, target=">= 90", holds=deployed >= 90),
        Row(name=f"seed {seed}: whole demo", unit="min", ours=minutes, target="< 15", holds=minutes < 15, higher_is_better=False),
    ]
