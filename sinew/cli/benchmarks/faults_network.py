"""Bad networks between a deployment and its robot, each in a process of its own: what the robot truly did."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from sinew.bench import Row

AT_STEP = 8
CUT_TICKS = 500
"""5 s of a robot at 100 Hz."""


def rows(quick: bool) -> list[Row]:
    """A partition of 5 s, and loss with delay, duplication and reordering."""
    made = _partition()
    for loss in (0.2,) if quick else (0.01, 0.05, 0.2):
        made += _loss(loss)
    return made


def _processes(folder: Path, proxy: Any, domain: int) -> tuple[Any, Any]:
    from robot_bridge.faults.process import PolicyProcess, RobotProcess

    return RobotProcess(folder, domain, proxy.environment("robot")), PolicyProcess(domain, proxy.environment("policy"))


def _partition() -> list[Row]:
    import time

    import numpy as np

    from robot_bridge.faults.link import LinkFaults
    from robot_bridge.faults.process import speeds, travel_rad, until
    from robot_bridge.faults.rtps_proxy import RtpsProxy

    with tempfile.TemporaryDirectory() as folder, RtpsProxy() as proxy:
        robot, policy = _processes(Path(folder), proxy, 1 + os.getpid() % 99)
        try:
            policy.wait_for_step(AT_STEP)
            cut_ns = time.monotonic_ns()
            proxy.set(LinkFaults(partition=True))
            begin = len(robot.ticks())
            until(lambda: len(robot.ticks(begin)) > CUT_TICKS)
            healed_ns = time.monotonic_ns()
            proxy.set()
            how = policy.ended()
            count = len(robot.ticks())
            until(lambda: len(robot.ticks(count)) > CUT_TICKS // 2)
            ticks = robot.ticks()
            told = robot.end()
        finally:
            robot.kill()
            policy.kill()
    stamps, moving = np.array([tick["now_ns"] for tick in ticks]), speeds(ticks) > 0.01
    last = stamps[moving & (stamps < healed_ns)].max()
    after = [tick for tick in ticks if tick["now_ns"] > healed_ns]
    counts = np.array([tick["taken"] for tick in ticks])
    taken = stamps[1:][(np.diff(counts) > 0) & (stamps[1:] < healed_ns)].max()
    hold_ms = max(0.0, (taken - cut_ns) / 1e6)
    still_ms, came_back_rad = (last - cut_ns) / 1e6, travel_rad(after)
    refused = sum(told["refused"].values())
    return [
        _row("partition of 5 s: last command taken after", "ms", hold_ms, "<= 100 ms", hold_ms <= 100.0),
        # the last command is followed for as long as the arm's own servos need to get there
        _row("partition of 5 s: the arm is at rest (< 0.01 rad/s) after", "ms", still_ms, "<= 100 + 250 ms", still_ms <= 350.0),
        _row("partition of 5 s: motion after its end", "rad", came_back_rad, "< 0.001 rad", came_back_rad < 1e-3),
        _row(f"partition of 5 s: deployment ended ({how})", "", float(how == "stale_observation"), "latched", how == "stale_observation"),
        _row("partition of 5 s: commands refused by the driver", "", refused, "0", refused == 0),
    ]


def _loss(loss: float) -> list[Row]:
    from robot_bridge.faults.link import LinkFaults
    from robot_bridge.faults.rtps_proxy import RtpsProxy

    with tempfile.TemporaryDirectory() as folder, RtpsProxy() as proxy:
        robot, policy = _processes(Path(folder), proxy, 1 + os.getpid() % 99)
        try:
            policy.wait_for_step(2)
            proxy.set(LinkFaults(loss=loss, delay_s=0.05, jitter_s=0.03, duplicate=0.1, reorder=0.1))
            how = policy.ended()
            told = robot.end()
        finally:
            robot.kill()
            policy.kill()
    wrong = sum(told["refused"].values()) + told["sudden"]
    name = f"loss {loss:.0%}, delay 50 +- 30 ms, duplicates, reordering: commands beyond limits ({how})"
    return [_row(name, "", wrong, "0", wrong == 0)]


def _row(name: str, unit: str, ours: float, target: str, holds: bool) -> Row:
    return Row(name=f"10: {name}", unit=unit, ours=ours, target=target, holds=holds, higher_is_better=False)
