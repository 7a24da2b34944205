"""A robot that a person stands beside: one action for each policy period through the safety gate, and holding when in doubt.

A pause, a lost device, a measurement that stays away and a latched gate all end the same way: the robot stands, one line says
why, and nothing goes on before the reason is gone or a person says so. The control loop's own thread sends at its rate
whatever happens here; where a new action does not come in time the gate holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from demos.resized import fit
from robot_bridge.cadence import Cadence, next_deadline
from robot_bridge.clock import Clock, MonotonicClock, sleep
from robot_bridge.deploy import UNKNOWN_POSE, DeployConfig, TaskInterface, make_gate
from robot_bridge.gate import SafetyGate
from robot_bridge.given import ActionSpace
from robot_bridge.loop import ControlLoop, openings
from robot_bridge.standing import why_stopped
from robot_bridge.takeover import DeviceLost, Given, Request, Takeover
from sinew.errors import InputError, SafetyStop
from sinew.protocols import Command, Observation, Robot
from sinew.specs import ENVIRONMENT_STATE, IMAGES, ObservationSpec

POLICY, HUMAN = 1, 2
"""Source bits, as `rl.batch` has them."""
POLL_S = 0.05
"""Between two questions while the robot holds."""
REOPEN_S = 0.5
"""Between two tries to find a lost device."""
LATE_TOLD_S = 10.0
"""Actions that come late are told no more often than this; all of them count."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LearningConfig(DeployConfig):
    """How learning on a robot runs, beside what a deployment has."""

    patience_s: float = 600.0
    """A robot that holds for want of a person longer than this ends the run, which can be gone on with."""
    home_speed: float = 0.3
    """Share of the joints' largest speed for going home."""

    def __post_init__(self) -> None:
        if not self.patience_s > 0 or not 0 < self.home_speed <= 0.9:
            raise InputError(f"patience_s {self.patience_s} must be above 0 and home_speed {self.home_speed} in (0, 0.9]")


@dataclass(frozen=True)
class Help:
    """A step that a person chose."""

    episode: int
    """Counted from the beginning of this process."""
    step: int
    given: Given
    """As it was given: frame, values, opening."""
    action: np.ndarray
    """(A,) as it was executed: physical units of the policy's action space."""


class AttendedRobot:
    """A robot, its control loop and gate, and the person beside it.

    Args:
        robot: connected here, left connected.
        interface: the task.
        takeover: the person; None for nobody.
        gate: None for the task's limits.
        config: rates and times.
        clock: `SteppedClock` with a stepped `SimRobot` makes every run alike.
        tell: gets lines for the person.
        on_help: told every step that the person chose.
        on_label: told words about the episode before: "last_success", "last_failure", "undo".
        stopping: whether the run shall end; asked all the time.
        wanted: observations that are made; all of the task's if None. Poses of objects are not waited for where they are not among them.

    Raises:
        InputError: the robot does not answer, or a person cannot give the task's actions.
    """

    def __init__(
        self,
        robot: Robot,
        interface: TaskInterface,
        *,
        takeover: Takeover | None = None,
        gate: SafetyGate | None = None,
        config: LearningConfig | None = None,
        clock: Clock | None = None,
        tell: Callable[[str], None] = lambda line: None,
        on_help: Callable[[Help], None] | None = None,
        on_label: Callable[[Request], None] | None = None,
        stopping: Callable[[], bool] = lambda: False,
        wanted: ObservationSpec | None = None,
    ) -> None:
        self.robot, self.interface, self.takeover = robot, interface, takeover
        self.config, self.clock = config or LearningConfig(), clock or MonotonicClock()
        self.tell, self.on_help, self.on_label, self._stopping = tell, on_help, on_label, stopping
        self.wanted = wanted or interface.observation_spec
        self.gate = gate or make_gate(interface, self.config)
        self.actions = ActionSpace(interface)
        self.period_ns = round(1e9 / interface.action_spec.rate_hz)
        self.ttl_s = 2 * self.period_ns / 1e9 if self.config.command_ttl_s is None else self.config.command_ttl_s
        self.cadence = Cadence(("command", "wait", "measure"), self.period_ns / 1e9)
        self.loop = ControlLoop(robot, self.gate, blend_s=self.period_ns / 1e9, clock=self.clock, realtime=self.config.realtime)
        self.holds: list[str] = []
        """Why the robot held outside of an episode's time, newest last."""
        self.episode, self.step, self.seed = -1, 0, 0
        """What is played now."""
        self.playing = False
        """Whether an episode runs; else words about success are about the last one."""
        self.asked: Request | None = None
        """What the person said of an episode, for whoever plays it."""
        self.interrupted = False
        """Whether time has passed that is not the episode's, since somebody set this to False."""
        self.observation: dict[str, np.ndarray] = {}
        """{key: (...)} as measured last."""
        self._decoder = interface.decoder(1)
        self._measured = Observation(-(1 << 62), 0, {})
        self._seq, self._deadline_ns, self._late_told_ns = 0, 0, -(1 << 62)
        self._resting, self._asked_stop = True, False
        robot.connect(self.config.connect_timeout_s)
        self.loop.start()

    def close(self) -> None:
        """Bring the robot to rest and let go of it and of the person's device."""
        try:
            self.loop.close()
        finally:
            if self.takeover is not None:
                self.takeover.close()

    @property
    def stopped(self) -> bool:
        """Whether the run shall end."""
        return self._asked_stop or self._stopping()

    # ------------------------------------------------------------ a tick

    def tick(self, planned: np.ndarray) -> tuple[np.ndarray, int]:
        """Execute action (A,) in physical units, or what the person gives instead, for one policy period.

        Returns:
            (A,) what was executed, and the bit of who chose it.

        Raises:
            SafetyStop: the robot holds, and nobody is there to let it go on.
        """
        self._go_on()
        marks = [self.clock.now_ns()]
        given = self._of_person(self._read)
        self._go_on()  # where the device was lost meanwhile
        executed = planned if given is None else self.actions.action(given, self._joints())
        self._send(executed)
        self.actions.executed(executed, by_person=given is not None)
        marks.append(self.clock.now_ns())
        if given is not None and self.playing and self.on_help is not None:
            self.on_help(Help(self.episode, self.step, given, executed))
        due_ns = self._wait()
        marks.append(self.clock.now_ns())
        self._attend()
        self.measure()
        marks.append(self.clock.now_ns())
        if not self.interrupted:
            self.cadence.add(due_ns, marks)
        return executed, POLICY if given is None else HUMAN

    def _read(self, person: Takeover) -> Given | None:
        person.watch(self.observation, self.step if self.playing else -1, self.seed)
        return person.read()

    def _joints(self) -> np.ndarray:
        return np.asarray(self._measured.values["joint_position"], dtype=float)

    def _send(self, action: np.ndarray) -> None:
        if action.shape != (self.interface.action_spec.dim,) or not np.isfinite(action).all():
            self.gate.stop("non_finite", self.clock.now_ns(), f"an action of shape {action.shape}: {action!r:.200}")
            return
        target, gripper = self._decoder.decode(action[None], self._joints()[None])
        self._command(target[0], np.atleast_1d(gripper[0]))

    def _command(self, joint_target: np.ndarray, gripper: np.ndarray) -> None:
        """Hand joint targets (J,) rad and openings (G,) m to the control loop."""
        self._seq += 1
        values = {"joint_position": joint_target, "gripper": openings(tuple(gripper.tolist()))}
        self.loop.submit(Command(self._measured.stamp_ns, self._seq, self.ttl_s, values))

    def _wait(self) -> int:
        """Let the period pass; gives when it was due to begin."""
        due_ns = self._deadline_ns
        self._deadline_ns = next_deadline(due_ns, self.period_ns, self.clock.now_ns())
        self.clock.wait_until(self._deadline_ns)
        return due_ns

    # ------------------------------------------------------------ holding and going on

    def rest(self) -> None:
        """Come to a standstill and send nothing more; the robot holds by itself."""
        if not self._resting:
            self.loop.ramp_down()
            self.loop.pause()
        self._resting = True

    def begin(self, seed: int) -> None:
        """An episode begins with what is measured now; the clock runs from its first `tick` on."""
        self.episode, self.step, self.seed, self.playing = self.episode + 1, 0, seed, True
        self.interrupted = False
        self.actions.reset(np.atleast_1d(self._measured.values["gripper"]))

    def _go_on(self) -> None:
        """Begin to send again where the robot rests, or was left without an action for too long."""
        late_s = (self.clock.now_ns() - self._deadline_ns) / 1e9
        if not self._resting and late_s > self.ttl_s:
            now_ns = self.clock.now_ns()
            quiet = now_ns - self._late_told_ns < LATE_TOLD_S * 1e9
            self._late_told_ns = self._late_told_ns if quiet else now_ns
            self._hold(f"no action came for {late_s:.2f} s", quiet=quiet)
            if self.gate.latched in ("expired", "no_command"):  # by this very delay, which is over
                self.gate.release()
        while self._resting and not self.stopped:
            closed = self.loop.resume()
            if closed:
                self._wait_for_person(f"the safety gate is closed ({why_stopped(self.gate, self.robot)})")
                continue
            self._resting = False
            self.cadence.resume()
            self._deadline_ns = self.clock.now_ns()
            self._measured = self.robot.read()
            grippers = np.atleast_1d(self._measured.values["gripper"])
            self._decoder.reset(self._joints()[None], grippers[None])
            if self.playing and self.step:  # what is held stays held: a measured opening would let it slip
                self._command(self._joints(), self.actions.openings if len(self.actions.openings) else grippers)

    def _attend(self) -> None:
        """See to what has come up: a stale measurement, a latched gate, the person's words. Returns when the robot may go on."""
        if self.loop.defect is not None:
            raise self.loop.defect
        limit_s, told = self.gate.config.observation_ttl_s, False
        while not self.gate.latched and (age_s := (self.clock.now_ns() - self.robot.read().stamp_ns) / 1e9) > limit_s:
            if not told:  # the gate holds by itself until it has waited long enough, and then it latches
                self._tell_hold(f"the newest measurement of robot {self.robot.spec.name} is {age_s:.2f} s old")
                told = True
            sleep(self.clock, POLL_S / 5)
        if self.gate.latched:
            self._wait_for_person(f"the safety gate stopped the robot ({why_stopped(self.gate, self.robot)})")
        elif told:
            self.rest()
        while (word := self._word()) is not None:
            self._take(word)
        if self.interrupted:
            self._go_on()

    def _take(self, word: Request) -> None:
        """A word of the person."""
        if word == "pause":
            self._wait_for_person("paused")
        elif word == "stop":
            self._asked_stop = True
        elif word in ("intervene", "again"):  # for a device that cannot tell by itself, and for recordings
            return
        elif word in ("reset", "discard"):
            self.asked = "reset"
        elif word in ("success", "failure") and self.playing:
            self.asked = word
        elif word != "undo" and not self.playing:
            self.asked = "last_success" if word in ("success", "last_success") else "last_failure"
        elif self.on_label is not None:
            self.on_label(word)

    def ask(self, what: str) -> None:
        """Have the person do something while the robot holds, until "pause" is said again.

        Raises:
            SafetyStop: nobody is there, or nobody says anything.
        """
        self._wait_for_person(what)

    def _wait_for_person(self, why: str) -> None:
        """Hold until the person lets go on; then the gate is open again.

        Raises:
            SafetyStop: nobody is there, or nobody said anything for `patience_s`.
        """
        self._hold(why)
        if self.takeover is None:
            raise SafetyStop(f"{why}; nobody is there to let it go on: give --intervene")
        until_ns = self._until()
        while not self.stopped:
            word = self._word()
            if word in ("pause", "reset", "discard"):
                self.asked = "reset" if word != "pause" and self.playing else self.asked
                break
            if word is not None:
                self._take(word)
            self._check_patience(until_ns, why)
            sleep(self.clock, POLL_S)
        if self.gate.latched and not self.stopped:
            self.gate.release()

    def _word(self) -> Request | None:
        def hear(person: Takeover) -> Request | None:
            return person.request()

        return self._of_person(hear)

    def _of_person(self, ask: Callable[[Takeover], T]) -> T | None:
        """Ask the person's device; where it is lost, hold until it is back and the person lets go on."""
        if self.takeover is None:
            return None
        try:
            return ask(self.takeover)
        except DeviceLost as e:
            lost = str(e)
        self._hold(lost)
        until_ns = self._until()
        while not self.stopped:
            if self.takeover.reopen():
                self._wait_for_person("the device is back")
                return None
            self._check_patience(until_ns, lost)
            sleep(self.clock, REOPEN_S)
        return None

    def _until(self) -> int:
        return self.clock.now_ns() + int(self.config.patience_s * 1e9)

    def _check_patience(self, until_ns: int, why: str) -> None:
        if self.clock.now_ns() > until_ns:
            raise SafetyStop(f"{why}; nobody let it go on for {self.config.patience_s:g} s, and the same command goes on later")

    def _hold(self, why: str, *, quiet: bool = False) -> None:
        self._tell_hold(why, quiet=quiet)
        self.rest()

    def _tell_hold(self, why: str, *, quiet: bool = False) -> None:
        self.interrupted = True
        self.holds = [*self.holds[-99:], why]
        if not quiet:
            self.tell(f"the robot holds: {why}" + ("" if self.takeover is None else "; the pause key lets it go on"))

    # ------------------------------------------------------------ motions that are no episode

    def drive(self, act: Callable[[dict[str, Tensor]], Tensor], steps: int, until: Callable[[], bool] = lambda: False) -> int:
        """Let `act` move the robot outside of an episode; the person may take over here too.

        Args:
            act: {key: (1, ...)} → action (1, A) in [-1, 1].
            steps: policy periods at most.
            until: ends it early.

        Returns:
            Periods driven.
        """
        self.measure()
        self.actions.reset(np.atleast_1d(self._measured.values["gripper"]))
        for step in range(steps):
            if until() or self.stopped:
                return step
            action = act(self.tensors()).detach().cpu().double()
            self.tick(self.interface.action_spec.denormalize(action).numpy()[0])
        return steps

    def go_home(self, timeout_s: float = 20.0) -> bool:
        """Open the grippers and move every joint home in a straight line; whether it got there."""
        spec = self.robot.spec
        home = np.array(spec.home_rad)
        most = self.config.home_speed * np.array(spec.velocity_max_rad_s) * self.period_ns / 1e9
        gripper = np.full(np.atleast_1d(self.robot.read().values["gripper"]).size, spec.gripper_high_m)
        self.measure()
        target = self._joints()
        for _ in range(int(timeout_s * 1e9) // self.period_ns):
            if self.stopped or np.abs(self._joints() - home).max() < 0.02:
                break
            self._go_on()
            target = target + np.clip(home - target, -most, most)
            self._command(target, gripper)
            self._wait()
            self._attend()
            self.measure()
        self.rest()
        return bool(np.abs(self._joints() - home).max() < 0.05)

    # ------------------------------------------------------------ seeing

    def measure(self) -> None:
        """Look at what the robot measures now."""
        self._measured = self.robot.read()
        values, interface, wanted = self._measured.values, self.interface, self.wanted
        poses = {name: np.asarray(values.get(f"pose.{name}", UNKNOWN_POSE), dtype=float)[None] for name in interface.objects}
        gripper = np.atleast_1d(values["gripper"])[None]
        seen = interface.observe(values["joint_position"][None], values["joint_velocity"][None], gripper, poses)
        self.observation = {key: value[0] for key, value in seen.items() if key in wanted.tensors}
        for key in wanted.images:
            height, width, _ = wanted[key].shape
            self.observation[key] = fit(values["images." + key.removeprefix(IMAGES)], height, width)

    def measure_all(self) -> None:
        """Wait until the robot measures everything that the task needs, and measures it now.

        Raises:
            InputError: something never comes.
            SafetyStop: nothing comes any more.
        """
        wanted = self.wanted
        needed = ["joint_position", "joint_velocity", "gripper"]
        if ENVIRONMENT_STATE in wanted.tensors:
            needed += [f"pose.{name}" for name in self.interface.objects]
        needed += ["images." + key.removeprefix(IMAGES) for key in wanted.images]
        timeout_s, begun_ns = self.config.connect_timeout_s, self.clock.now_ns()
        while True:
            measured = self.robot.read()
            missing = [key for key in needed if key not in measured.values]
            now_ns = self.clock.now_ns()
            if not missing and now_ns - measured.stamp_ns <= self.gate.config.observation_ttl_s * 1e9:
                self.measure()
                return
            if now_ns - begun_ns > timeout_s * 1e9:
                name = self.robot.spec.name
                if missing:
                    sent = ", ".join(measured.values)
                    raise InputError(f"robot {name} did not send {', '.join(missing)} within {timeout_s:g} s; it sends {sent}")
                raise SafetyStop(f"robot {name} sent nothing for {timeout_s:g} s; the same command goes on when it is there again")
            self.clock.wait_until(now_ns + self.period_ns // 4)

    def poses(self) -> Mapping[str, np.ndarray]:
        """{object: (7,)} position in metres and wxyz quaternion, as measured now; only what is seen."""
        values = self.robot.read().values
        return {name: np.asarray(values[f"pose.{name}"]) for name in self.interface.objects if f"pose.{name}" in values}

    def tensors(self) -> dict[str, Tensor]:
        """{key: (1, ...)} as measured last."""
        return {key: torch.from_numpy(np.array(value))[None] for key, value in self.observation.items()}

    def report(self) -> dict[str, Any]:
        """JSON-able: cadence of the policy's ticks and of the control loop, what the gate did, and why the robot held."""
        gate = {"counts": dict(self.gate.counts), "outcomes": dict(self.loop.outcomes), "latched": self.gate.latched}
        return {"policy": self.cadence.report(), "controller": self.loop.report(), "gate": gate, "holds": list(self.holds)}
