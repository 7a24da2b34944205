"""A million ticks of policy, loop, gate and simulated robot, as fast as they go: what grows, and what is left open."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from typing import Any

from sinew.bench import Row

TICKS = 1_000_000
QUICK_TICKS = 20_000
WARM_SHARE = 0.1
"""Part of the ticks after which memory is first looked at: caches fill up before."""
SAMPLES = 10
TOLD_S = 5.0


def rows(quick: bool) -> list[Row]:
    """Run, with progress on standard error."""
    return measure(QUICK_TICKS if quick else TICKS)


def measure(ticks: int) -> list[Row]:
    """Deploy the scripted expert on lift, episode after episode, for so many controller ticks of a stepped clock."""
    watch = _Watch(ticks)
    report = _deploy(watch)
    first, last = watch.samples[0], watch.samples[-1]
    growth = 100.0 * (last["rss_bytes"] - first["rss_bytes"]) / first["rss_bytes"]
    more = {what: last[what] - first[what] for what in ("descriptors", "threads")}
    hours = watch.ticks / report.controller["rate_hz"] / 3600.0
    detail = {"samples": watch.samples, "episodes": len(report.episodes), "hours": hours, "success": report.k / max(report.n, 1)}
    enough = watch.ticks >= TICKS

    def row(name: str, unit: str, ours: float, target: str, holds: bool) -> Row:
        return Row(name=name, unit=unit, ours=ours, target=target, holds=holds if enough else None, higher_is_better=False, detail=detail)

    return [
        row(f"soak: simulated time, {watch.ticks:,} controller ticks", "h", hours, ">= 1 h", hours >= 1.0),
        row("soak: memory growth after the first tenth", "%", growth, "< 1 %", growth < 1.0),
        *(row(f"soak: {what} more at the end", "", more[what], "0", more[what] <= 0) for what in more),
        row("soak: commands that the robot's driver refused", "", sum(watch.refused.values()), "0", not watch.refused),
        row("soak: latched", "", float(report.stopped not in ("", "soak")), "0", report.stopped in ("", "soak")),
    ]  # fmt: skip


def _deploy(watch: _Watch) -> Any:
    """Deploy until the watch has seen enough."""
    import sim
    from robot_bridge.clock import SteppedClock
    from robot_bridge.deploy import DeployConfig, deploy, make_gate
    from robot_bridge.driver import DriverCheck
    from robot_bridge.faults.trial import Checked, Expert
    from robot_bridge.sim_robot import SimScene

    clock, interface, world = SteppedClock(), sim.make_interface("lift"), sim.RobotSim("lift")
    robot = Checked(world, interface.robot_spec, clock=clock)
    check: DriverCheck = robot.check
    watch.refused = check.refused
    config = DeployConfig()
    gate = make_gate(interface, config)
    # an episode takes more than half a second; deployment ends when enough ticks have passed
    episodes = max(1, int(watch.wanted / config.controller_rate_hz / 0.5))
    expert: Any = Expert(interface, clock)

    def frame(told: Any) -> None:
        watch.look(check.taken)
        if watch.over:
            gate.stop("soak", clock.now_ns(), "enough")

    report = deploy(
        expert, interface, robot, episodes=episodes, scene=SimScene(robot), gate=gate, config=config, clock=clock, on_frame=frame
    )
    watch.look(check.taken, last=True)
    robot.close()
    world.close()
    return report


class _Watch:
    """Looks at this process now and then."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.ticks = wanted, 0
        self.samples: list[dict[str, int]] = []
        self.refused: Any = {}
        self._began = self._told = time.monotonic()

    @property
    def over(self) -> bool:
        return self.ticks >= self.wanted

    def look(self, ticks: int, last: bool = False) -> None:
        """Take a sample where one is due, and tell how far it is."""
        self.ticks = ticks
        share = ticks / self.wanted
        due = WARM_SHARE + len(self.samples) * (1.0 - WARM_SHARE) / SAMPLES
        if share >= due or last:
            gc.collect()
            self.samples.append({"ticks": ticks, **process()})
        now = time.monotonic()
        if now - self._told > TOLD_S or last:
            self._told = now
            left_s = (now - self._began) / max(share, 1e-9) * (1.0 - min(share, 1.0))
            sys.stderr.write(f"soak: {ticks:,} of {self.wanted:,} ticks, {left_s:.0f} s left\n")


def process() -> dict[str, int]:
    """Memory, descriptors and threads of this process."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }
