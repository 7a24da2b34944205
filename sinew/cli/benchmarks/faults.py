"""The faults of real robots and networks, each with what must hold: at exact times on a stepped clock, and between processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sinew.bench import Row

PERIOD_S = 0.05
AT_TICK = 12
FUZZED = 100_000
QUICK_FUZZED = 5_000
DEAD_MAN_S = 0.19
"""A controller period less than what is promised, since a tick sees it afterwards."""
SEEDS, QUICK_SEEDS, SMALL = range(6), range(1), (48, 64)
BEFORE = 30
"""Pictures before a bump."""
BUMPS, TURNED = ((1e-3, 0.2), (0.02, 2.0)), np.array([1, -1, 1, -1, 1, 1])


def rows(quick: bool) -> list[Row]:
    """Every fault that can be measured here; those that are measured elsewhere say where."""
    made: list[Row] = []
    bumped, exchanged = lambda: _bumped_cameras(SEEDS), lambda: _exchanged(QUICK_SEEDS if quick else SEEDS)
    for measure in (_cameras, exchanged, bumped, _actions, _late_policies, _joint_states, _clocks, _operator, lambda: _driver(quick)):
        made += measure()
        sys.stderr.write(f"faults: {made[-1].name}\n")
    return [*made, *_load(3.0 if quick else 15.0), *_network(quick), *_elsewhere()]


def _row(number: int, name: str, unit: str, ours: float | None, target: str, holds: bool | None, why: str | None = None) -> Row:
    return Row(name=f"{number}: {name}", unit=unit, ours=ours, target=target, holds=holds, peer=why, higher_is_better=False)


def _most(number: int, name: str, ours_ms: float, most_ms: float) -> Row:
    return _row(number, name, "ms", round(ours_ms, 3), f"<= {most_ms:g} ms", ours_ms <= most_ms)


def _yes(number: int, name: str, holds: bool, target: str) -> Row:
    return _row(number, name, "", float(holds), target, holds)


def _trial(what: str, for_s: float | None = None, at_s: float = 0.5, cameras: tuple[str, ...] = (), **parameters: Any) -> Any:
    from robot_bridge.faults.schedule import Fault, Schedule
    from robot_bridge.faults.trial import Trial

    fault = Fault(what=what, after="motion", at_s=at_s, for_s=for_s, parameters=parameters)
    return Trial(schedule=Schedule(faults=(fault,)), cameras=cameras).run()


def _held_ms(trial: Any) -> float:
    """From the fault to the gate's first word about it."""
    found = trial.first(("hold", "latched"), trial.onset_ns)
    return float("inf") if found is None else (found[0] - trial.onset_ns) / 1e6


# ---------------------------------------------------------------- one process, exact times


def _cameras() -> list[Row]:
    short, longer, lost, black = (
        _trial(what, for_s, 0.4, ("front",))
        for what, for_s in (("camera_stall", 0.1), ("camera_stall", 0.3), ("camera_unplugged", None), ("camera_black", 0.3))
    )
    stood = longer.speed_at(longer.onset_ns + int(0.3e9)) == 0.0
    seen = lambda made: made.report.policy["observations"]["images.front"]  # noqa: E731
    return [
        _yes(
            4, "camera stalls 100 ms: counted, episode succeeds", short.report.k == 1 and seen(short).get("late", 0) > 0, "skip and count"
        ),
        _yes(4, "camera stalls 300 ms: held, then goes on", stood and longer.report.k == 1, "hold above 200 ms"),
        _most(4, "camera unplugged: last motion after the last picture", 1e3 * lost.stop_s(lost.onset_ns), 500.0),
        _yes(4, "camera unplugged: episode ended, kept and marked", lost.report.episodes[0].ended_by == "no images.front", "end at 1 s"),
        _yes(4, "black pictures are counted", seen(black).get("black", 0) > 0, "counted"),
    ]


def _exchanged(seeds: range) -> list[Row]:
    """Two cameras change places before an episode: refused; in their places: not."""
    from robot_bridge.faults.cameras import check_of
    from robot_bridge.faults.schedule import Fault, Schedule
    from robot_bridge.faults.trial import Trial
    from sinew.errors import InputError

    both, refused, moved, begun = ("front", "wrist"), 0, 0, 0
    for seed in seeds:
        for swapped in (True, False):
            faults = (Fault(what="cameras_swapped", after="start"),) if swapped else ()
            made = Trial(Schedule(faults=faults), cameras=both, image_size=SMALL, look=lambda world: check_of(world, both, SMALL))
            try:
                begun += made.run(seeds=(seed,), max_steps=1).report.stopped == "" and not swapped
            except InputError as e:
                refused += swapped and "are exchanged" in str(e)
                moved += len(made.robot.commands)
    count = len(seeds)
    return [
        _row(4, f"exchanged cameras: refused before the episode, of {count}", "", refused, f"{count}", refused == count),
        _row(4, "exchanged cameras: commands sent", "", moved, "0", moved == 0),
        _row(4, f"cameras in their places: episodes begun, of {count}", "", begun, f"{count}", begun == count),
    ]


def _bumped_cameras(seeds: range) -> list[Row]:
    """Pictures of a board until a bump is told of and named, and alarms without one; the calibration's own uncertainty counts."""
    from calibration.drift import DriftMonitor, Picture
    from calibration.simulate import Scenario, simulate, view_at
    from calibration.solve import solve
    from calibration.views import pack
    from sinew.se3 import se3_exp

    scenario, alarms, named = Scenario(views=60), 0, 0
    until: dict[tuple[float, float], list[float]] = {bump: [] for bump in BUMPS}
    for seed in seeds:
        made = simulate(scenario, seed)
        result = solve(pack(made.views[:12]), [made.camera], scenario.mount, model="poses")
        for (metres, degrees), pictures in until.items():
            rng, monitor, since = np.random.default_rng(seed), DriftMonitor.of(result, ("front",)), float("inf")
            bumped = replace(made, X=made.X @ se3_exp(TURNED / 3**0.5 * ([metres] * 3 + [np.deg2rad(degrees)] * 3)))
            for i, view in enumerate(made.views[12:]):
                seen = view_at(made if i < BEFORE else bumped, scenario, view.robot, rng)
                if seen is None:
                    continue
                drift = monitor.see(Picture(camera="front", robot=seen.robot, points=seen.points, pixels=seen.pixels))
                if not drift.holds:
                    since = min(since, i - BEFORE + 1)
            alarms += since <= 0
            named += drift.moved[:1] == ("camera front",)
            pictures.append(since)
    (small, large), trials = (max(until[bump]) for bump in BUMPS), len(seeds) * len(BUMPS)
    return [
        _row(16, "camera bumped 1 mm, 0.2 deg: pictures until told, worst", "", small, "<= 12", 0 < small <= 12),
        _row(16, "camera bumped 20 mm, 2 deg: pictures until told, worst", "", large, "<= 1", 0 < large <= 1),
        _row(16, f"alarms in {BEFORE * trials} pictures before the bump", "", alarms, "0", alarms == 0),
        _row(16, f"the camera is named, of {trials}", "", named, f"{trials}", named == trials),
    ]


def _actions() -> list[Row]:
    from robot_bridge.faults.trial import Trial

    latest, reached = 0.0, 0
    for value in (float("nan"), float("inf"), -float("inf")):
        given: list[int] = []
        made = Trial()
        made.spoil = _spoiling(made, given, value)
        made.run()
        found = made.first(("latched",), given[0])
        latest = max(latest, float("inf") if found is None else (found[0] - given[0]) / 1e6)
        reached += sum(made.robot.check.refused.values()) + int((~np.isfinite(np.array(made.robot.commands))).sum())
    return [
        _most(5, "NaN and infinity from a policy: latched after", latest, 0.0),
        _row(5, "NaN and infinity from a policy: reached the driver", "", reached, "0", reached == 0),
    ]


def _spoiling(trial: Any, given: list[int], value: float) -> Callable[[int, Any], Any]:
    """What a policy gives that breaks at `AT_TICK`; `given` gets the times."""
    import torch

    def spoil(tick: int, action: Any) -> Any:
        if tick < AT_TICK:
            return action
        given.append(trial.clock.now_ns())
        return torch.full_like(action, value)

    return spoil


def _late_policies() -> list[Row]:
    from robot_bridge.faults.trial import Trial

    made: list[Row] = []
    hold, still = 0.0, 0.0
    for periods in (1.0, 2.0, 5.0, 60.0):
        trial = Trial(think_s=lambda tick, periods=periods: periods * PERIOD_S if tick == AT_TICK else 0.0)
        trial.run()
        stops = trial.report.controller["stops"]
        hold = max(hold, stops["last_target_to_hold_ms"] or 0.0)
        still = max(still, stops["command_to_standstill_ms"] or 0.0)
    made.append(_most(6, "policy late 1, 2, 5, 60 periods: last valid target to hold", hold, 100.0))
    made.append(_most(6, "policy late: hold to zero velocity", still, 250.0))
    made.append(_yes(7, "policy away for 3 s: latched, an operator releases", trial.report.stopped == "expired", "no motion by itself"))
    return made


def _joint_states() -> list[Row]:
    dropped, frozen, jump, reversed_, nan = (_trial(f"joint_states_{what}") for what in ("dropped", "frozen", "jump", "reversed", "nan"))
    ignored, effort = _trial("commands_ignored", at_s=0.3), _trial("effort_spike", joint=1)
    limit = 3 * PERIOD_S * 1e3
    return [
        _most(8, "joint states dropped: hold (3 policy periods)", _held_ms(dropped), limit),
        _most(8, "joint states frozen while moving: detected", _held_ms(frozen), 100.0),
        _most(8, "joint state jumps 0.5 rad: held", _held_ms(jump), limit),
        _most(8, "stamps reversed: held", _held_ms(reversed_), limit),
        _most(8, "joint is NaN: held", _held_ms(nan), limit),
        _yes(8, "robot does not move: noticed and latched", ignored.report.stopped == "not_following", "held, with the remedy"),
        _row(8, "robot does not move: noticed after", "ms", round(_held_ms(ignored), 1), "", None),
        _most(8, "effort spike: held (0.1 s allowed)", _held_ms(effort), 120.0),
    ]


def _clocks() -> list[Row]:
    """The machine's wall clock is set while the robot moves: the same commands to the bit."""
    from robot_bridge.faults.trial import Trial, wall_clock_off

    plain, worst = Trial().run(), 0.0
    for offset_s in (3600.0, -3600.0):
        with wall_clock_off(offset_s):
            other = Trial().run()
        same = len(other.robot.commands) == len(plain.robot.commands)
        worst = max(worst, float(np.abs(np.array(other.robot.commands) - np.array(plain.robot.commands)).max()) if same else float("inf"))
    return [_row(9, "wall clock off by an hour: commands differ by at most", "rad", worst, "0", worst == 0.0)]


def _operator() -> list[Row]:
    from robot_bridge.faults.trial import Trial
    from robot_bridge.gate import Operator

    button, pressed = Operator(), []

    def press(made: Any, frame: Any) -> None:
        if frame.step == AT_TICK:
            pressed.append(made.clock.now_ns())
            button.press("bench")

    stopped = Trial(operator=button, on_frame=press).run()
    switch, beats = Operator(dead_man_s=DEAD_MAN_S), []

    def beat(made: Any, frame: Any) -> None:
        if frame.step < AT_TICK:
            beats.append(made.clock.now_ns())
            switch.beat(made.clock.now_ns())

    let_go = Trial(operator=switch, on_frame=beat).run()
    found = let_go.first(("hold", "latched"), beats[-1])
    held_ms = float("inf") if found is None else (found[0] - beats[-1]) / 1e6
    return [
        _most(12, "e-stop pressed: first braking command", stopped.report.controller["stops"]["e_stop_to_command_ms"], 50.0),
        _most(12, "e-stop pressed: stream at rest", 1e3 * stopped.stop_s(pressed[0]), 300.0),
        _most(12, f"dead-man switch of {DEAD_MAN_S:g} s let go: hold", held_ms, 200.0),
    ]


def _driver(quick: bool) -> list[Row]:
    """Wild commands through loop and gate, counted where the robot's driver takes them."""
    from robot_bridge.faults.fuzz import fuzz_driver

    told = fuzz_driver(QUICK_FUZZED if quick else FUZZED, seed=0)
    refused, reached = sum(told["refused"].values()), told["taken"] + sum(told["refused"].values())
    return [
        _row(13, f"{told['sent']:,} wild commands: refused by the driver of {reached:,}", "", refused, "0", refused == 0),
        _row(13, "wild commands: steps faster than the velocity limit", "", told["sudden"], "0", told["sudden"] == 0),
    ]


def _load(seconds: float) -> list[Row]:
    """The control loop at 100 Hz while two busy processes per core want the machine, with real-time priority and without."""
    import os
    import subprocess

    from sinew.cli.benchmarks.loop import _loop

    count = 2 * (os.cpu_count() or 1)
    busy = f"import time\nend = time.monotonic() + {3 * seconds + 5:g}\nwhile time.monotonic() < end: pass"
    hogs = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(count)]
    try:
        reports = [_loop(100.0, seconds, realtime) for realtime in (True, False)]
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    made = []
    for report, target in zip(reports, ("<= 1 %", ""), strict=True):
        late = 100.0 * report["late_ticks"] / report["ticks"]
        name = f"100 Hz loop beside {count} busy processes, {report['scheduler']}: ticks late by a period or more"
        made.append(_row(11, name, "%", round(late, 3), target, late <= 1.0 if target else None))
    return made


# ---------------------------------------------------------------- between processes


def _network(quick: bool) -> list[Row]:
    from sinew.cli.benchmarks.faults_network import rows as measured

    return measured(quick)


def _elsewhere() -> list[Row]:
    """Faults that other tests and benchmarks hold."""
    told: list[tuple[int, str, str]] = [
        (1, "SIGKILL of the recorder", "tests/demos/test_kill.py"),
        (2, "SIGKILL while an episode or checkpoint is saved", "tests/demos/test_kill.py, tests/rl/test_resume.py"),
        (3, "disk full", "tests/faults/test_full_disk.py, on a disk of 4 MB"),
        (7, "policy process killed or stopped", "tests/robot_bridge/test_dds_robot.py"),
        (14, "malicious checkpoints, messages and clients", "tests/robot_bridge/server"),
        (15, "generated rewards: files, network, processes, loops, memory, NaN", "tests/rewards/generated/test_escapes.py"),
        (17, "datasets that do not fit together", "tests/demos/test_concat.py"),
        (18, "soak", "sinew bench soak"),
    ]
    return [_row(number, name, "", None, "", None, where) for number, name, where in told]
