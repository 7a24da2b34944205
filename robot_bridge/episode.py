"""Episodes of a policy on one robot: synchronise, decide, decode, hand over, and hold when in doubt."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from demos.resized import fit
from robot_bridge.approach import Approach
from robot_bridge.cadence import Cadence, next_deadline
from robot_bridge.clock import Clock
from robot_bridge.interfaces import UNKNOWN_POSE, Frame, Recorder, TaskInterface, grippers_of, needed_values
from robot_bridge.loop import ControlLoop, openings
from robot_bridge.report import EpisodeResult
from robot_bridge.scene import Scene
from robot_bridge.synchroniser import Synchroniser
from sinew.errors import InputError, SafetyStop
from sinew.protocols import Command, Executor, Observation
from sinew.specs import IMAGES, ObservationSpec

if TYPE_CHECKING:
    from torch import Tensor

LATENCIES = 4096
"""Newest latencies that percentiles are taken over."""
REPLAN_S = 0.2
"""After a hold this long the policy plans anew: what it planned was for what it saw before."""

SAID = {"success": True, "failure": False, "stop": None}
"""Whether an episode that somebody's word ended was a success."""

Judge = Callable[[EpisodeResult], bool | None]
Look = Callable[[Observation], str]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of an episode."""

    period_ns: int
    """The policy's period."""
    ttl_s: float
    """A target is not followed longer than this after the measurement behind it."""
    steps: int
    """Policy ticks at most."""
    patience_s: float
    """What a robot may take to measure everything."""


class EpisodeRunner:
    """Plays episodes.

    Args:
        executor: decides; where its `act` gives None, or its server is lost, the robot holds.
        interface: the task.
        wanted: what the policy looks at.
        loop: the robot's control loop, started.
        synchroniser: judges what is measured.
        timing: times.
        clock: the loop's.
        approach: brings the robot to its start pose before each episode; None begins where it stands.
        warm: whether the executor has computed before; if not it is warmed by the first observation, before anything moves.
        watchers: told every frame.
        record: takes every frame and outcome.
        judge: asked whether an episode was a success where nothing else tells.
        look: says what is wrong with what is measured before an episode, for example that cameras are exchanged; nothing moves then.
        ended: asked after every tick whether somebody ends the episode, and how: "success", "failure", another word, or empty.
    """

    def __init__(
        self,
        executor: Executor,
        interface: TaskInterface,
        wanted: ObservationSpec,
        loop: ControlLoop,
        synchroniser: Synchroniser,
        timing: Timing,
        clock: Clock,
        *,
        approach: Approach | None = None,
        warm: bool = False,
        watchers: tuple[Callable[[Frame], None], ...] = (),
        record: Recorder | None = None,
        judge: Judge | None = None,
        look: Look | None = None,
        ended: Callable[[], str] = lambda: "",
    ) -> None:
        self.executor, self.interface, self.wanted, self.loop = executor, interface, wanted, loop
        self.robot, self.synchroniser, self.timing, self.clock = loop.robot, synchroniser, timing, clock
        self.approach, self.record, self.judge, self.look, self.ended = approach, record, judge, look, ended
        self.watchers = watchers if record is None else (*watchers, record.frame)
        self.cadence = Cadence(("read", "observe", "policy", "decode", "submit"), timing.period_ns / 1e9)
        self.latencies_ns: deque[int] = deque(maxlen=LATENCIES)
        self.late_actions = 0
        """Actions that were handed over after the deadline of the next tick."""
        self.holds: Counter[str] = Counter()
        """Policy ticks without a target, by reason: "thinking", "link", or the value that was too old."""
        self._decoder = interface.decoder(1)
        self._warm = warm
        self._seq = 0
        self._held_since_ns: int | None = None
        self._passed: Counter[str] = Counter()
        """Ticks since the newest frame that have none, by reason."""

    def play(self, episode: int, seed: int, scene: Scene | None) -> EpisodeResult:
        """One episode; the robot stands when this returns.

        Raises:
            InputError: the scene or the robot does not answer, or what it shows is wrong before the first episode.
            SafetyStop: the robot cannot be brought to its start pose, or what it shows is wrong before a later one.
        """
        loop, gate = self.loop, self.loop.gate
        loop.pause()
        if scene is not None:
            scene.reset(seed)
        measured = self._complete_measurement()
        if self.look is not None and (problem := self.look(measured)):
            raise SafetyStop(problem) if episode else InputError(problem)
        observation = self._tensors(self._observe(measured))  # what is loaded at first use is loaded before the robot moves
        if not self._warm:
            self.executor.act(observation)
            self._warm = True
        if self.approach is not None and self.approach.move():
            return self._result(episode, seed, None, 0, self.clock.now_ns())
        self.executor.reset(seeds=[seed])
        started_ns = self.clock.now_ns()
        if loop.resume():
            return self._result(episode, seed, None, 0, started_ns)
        self._begin()
        step, success, ended_by = 0, None, ""
        deadline_ns = self.clock.now_ns()
        while True:
            self.clock.wait_until(deadline_ns)
            success = None if scene is None else scene.success()
            if success or step >= self.timing.steps or gate.latched or ended_by:
                break
            ended_by = self._tick(episode, seed, step, deadline_ns) or self.ended()
            step += not ended_by
            due_ns, deadline_ns = deadline_ns, next_deadline(deadline_ns, self.timing.period_ns, self.clock.now_ns())
            self._passed["deadline"] += (deadline_ns - due_ns) // self.timing.period_ns - 1
        loop.ramp_down()
        success = SAID.get(ended_by, success)
        return self._result(episode, seed, success, step, started_ns, ended_by)

    # ------------------------------------------------------------ a tick

    def _begin(self) -> None:
        self._stand(self.robot.read())
        self.synchroniser.start(self.clock.now_ns())
        self.cadence.resume()
        self._passed.clear()
        self._held_since_ns = None

    def _tick(self, episode: int, seed: int, step: int, deadline_ns: int) -> str:
        """One policy period; gives why the episode must end, empty where it goes on."""
        marks = [self.clock.now_ns()]
        measured = self._look()
        judgement = self.synchroniser.judge(measured, marks[0])
        if judgement.answer != "use":
            self._hold(judgement.key, marks[0])
            if judgement.answer == "end" and marks[0] - measured.stamp_ns > self.loop.gate.config.observation_ttl_s * 1e9:
                # not a camera but the robot itself is lost: when it comes back, an operator decides what follows
                self.loop.gate.stop("stale_observation", marks[0], f"nothing was measured for {judgement.age_s:.3f} s")
            return f"no {judgement.key}" if judgement.answer == "end" else ""
        self._go_on(seed, marks[0], measured)
        marks.append(self.clock.now_ns())
        observation = self._observe(measured)
        marks.append(self.clock.now_ns())
        action = self._act(observation)
        marks.append(self.clock.now_ns())
        if action is None:
            return ""
        joints = np.asarray(measured.values["joint_position"], dtype=float)
        joint_target, gripper_target = self._decoder.decode(action[None], joints[None])
        marks.append(self.clock.now_ns())
        self._seq += 1
        values = {"joint_position": joint_target[0], "gripper": openings(tuple(np.atleast_1d(gripper_target[0]).tolist()))}
        command, before = Command(measured.stamp_ns, self._seq, self.timing.ttl_s, values), self.loop.verdict
        self.loop.submit(command)
        marks.append(self.clock.now_ns())
        self.cadence.add(deadline_ns, marks)
        self.late_actions += marks[-1] > deadline_ns + self.timing.period_ns
        self.latencies_ns.append(marks[-1] - measured.stamp_ns)
        if self.watchers:
            seen = {k: v[0] for k, v in observation.items()}
            frame = Frame(episode, seed, step, seen, action, measured, command, before, deadline_ns, {**+self._passed})
            self._passed.clear()
            for watch in self.watchers:
                watch(frame)
        return ""

    def _hold(self, key: str, now_ns: int) -> None:
        self._without(key)
        self._held_since_ns = self._held_since_ns or now_ns
        self.loop.hold(f"{key} is too old")

    def _without(self, reason: str) -> None:
        """A tick without a target."""
        self.holds[reason] += 1
        self._passed[reason] += 1

    def _go_on(self, seed: int, now_ns: int, measured: Observation) -> None:
        """Lift a hold; the policy begins anew where it was long, from where the robot stands."""
        if self._held_since_ns is None:
            return
        if now_ns - self._held_since_ns > REPLAN_S * 1e9:
            self.executor.reset(seeds=[seed])
            self._stand(measured)
        self._held_since_ns = None
        self.loop.hold("")

    def _stand(self, measured: Observation) -> None:
        """Actions are decoded from where the robot stands."""
        self._decoder.reset(measured.values["joint_position"][None], grippers_of(measured)[None])

    def _act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The next action (A,) in physical units.

        None when there is none: of an executor that still computes, or whose server is lost, and the robot holds as the last
        target expires; or of a policy that gave none that may be used, and the gate is latched.
        """
        from policies.wire import LinkError

        gate, spec = self.loop.gate, self.interface.action_spec
        try:
            given = cast("Tensor | None", self.executor.act(self._tensors(observation)))
        except SafetyStop as e:
            gate.stop("non_finite", self.clock.now_ns(), str(e))
            return None
        except LinkError:
            self._without("link")
            return None
        if given is None:
            self._without("thinking")
            return None
        action = np.asarray(given.detach().cpu(), dtype=np.float64)
        if action.shape != (1, spec.dim):
            gate.stop("shape", self.clock.now_ns(), f"the policy gave actions of shape {action.shape}, expected (1, {spec.dim})")
            return None
        if not np.isfinite(action).all():
            gate.stop("non_finite", self.clock.now_ns(), f"the policy gave {action[0]!r:.200}")
            return None
        return spec.denormalize(action[0])

    # ------------------------------------------------------------ seeing

    def _look(self) -> Observation:
        """What is measured now; of a robot with a contract as recordings of it hold it, every value at one time."""
        aligned = getattr(self.robot, "aligned", self.robot.read)
        return aligned()

    def _observe(self, measured: Observation) -> dict[str, np.ndarray]:
        """{key: (1, ...)} of everything that the policy looks at."""
        values = measured.values
        if hasattr(self.interface, "observe_values"):
            seen = self.interface.observe_values(values)  # type: ignore[attr-defined]
            return {key: value[None] for key, value in seen.items()}
        poses = {name: np.asarray(values.get(f"pose.{name}", UNKNOWN_POSE), dtype=float)[None] for name in self.interface.objects}
        gripper = grippers_of(measured)[None]
        observation = self.interface.observe(values["joint_position"][None], values["joint_velocity"][None], gripper, poses)
        observation = {key: value for key, value in observation.items() if key in self.wanted.tensors}
        for key in self.wanted.images:
            height, width, _ = self.wanted[key].shape
            observation[key] = fit(values["images." + key.removeprefix(IMAGES)], height, width)[None]
        return observation

    def _tensors(self, observation: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        import torch

        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in observation.items()}

    def _complete_measurement(self) -> Observation:
        """Wait until the robot measures everything that the policy needs, and measures it now.

        Raises:
            InputError: something never came.
            SafetyStop: something came, and does not any more.
        """
        needed = needed_values(self.interface, self.wanted)
        deadline_ns = self.clock.now_ns() + int(self.timing.patience_s * 1e9)
        while True:
            measured = self._look()
            missing = [key for key in needed if key not in measured.values]
            old = self.synchroniser.too_old(measured, self.clock.now_ns())
            if not missing and not old:
                return measured
            if self.clock.now_ns() > deadline_ns:
                within = f"within {self.timing.patience_s:g} s"
                if old and not missing:
                    raise SafetyStop(f"robot {self.robot.spec.name} sent nothing new of {', '.join(old)} {within}")
                sent = ", ".join(measured.values)
                raise InputError(f"robot {self.robot.spec.name} did not send {', '.join(missing)} {within}; it sends {sent}")
            self.clock.wait_until(self.clock.now_ns() + self.timing.period_ns)

    def _result(self, episode: int, seed: int, success: bool | None, steps: int, started_ns: int, ended_by: str = "") -> EpisodeResult:
        latched = self.loop.gate.latched
        duration_s = (self.clock.now_ns() - started_ns) / 1e9
        ended_by = "success" if success else latched or ended_by or "time_limit"
        result = EpisodeResult(seed, False if latched and not success else success, steps, duration_s, ended_by, {**+self._passed})
        if result.success is None and steps and self.judge is not None:
            result = replace(result, success=self.judge(result))
        if self.record:
            self.record.end_episode(result)
        return result

    def report(self) -> dict[str, Any]:
        """JSON-able: cadence, deadlines, holds, and what was wrong with measurements."""
        return {
            **self.cadence.report(),
            "late_actions": self.late_actions,
            "holds": dict(self.holds),
            "observations": self.synchroniser.report(),
        }
