"""One robot as an environment: whose action it was, and holding whenever something is in doubt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import sim
from rl.batch import HUMAN as RL_HUMAN
from rl.batch import POLICY as RL_POLICY
from rl.worlds import Worlds
from robot_bridge import DdsRobot, DdsScene, SafetyGate, SimRobot, SimScene, SteppedClock
from robot_bridge.attended import HUMAN, POLICY, AttendedRobot, LearningConfig
from robot_bridge.deploy import make_gate
from robot_bridge.kinematics import Arms
from robot_bridge.learning_env import LearningEnv
from robot_bridge.takeover import DeviceLost, Given, Request, ScriptedTakeover
from sinew.errors import SafetyStop
from sinew.protocols import Observation

UP = Given((0, 0, 1.0, 0, 0, 0), "world")
INTERFACE = sim.make_interface("lift")


class Frozen:
    """A robot whose measurements stay away while `frozen`."""

    def __init__(self, robot: SimRobot) -> None:
        self.robot, self.frozen, self.kept = robot, False, robot.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.robot, name)

    def read(self) -> Observation:
        if not self.frozen:
            self.kept = self.robot.read()
        return self.kept


class Rig:
    """A learning environment on a simulated robot in stepped time, with everything that was told."""

    def __init__(self, takeover: Any = None, *, scene: bool = True, frozen: bool = False, stopping: Any = lambda: False, **options: Any):
        self.clock, self.told, self.help, self.words = SteppedClock(), [], [], []
        self.simulated = SimRobot(sim.RobotSim("lift"), INTERFACE.robot_spec, clock=self.clock)
        self.robot: Any = Frozen(self.simulated) if frozen else self.simulated
        self.sent: list[np.ndarray] = []
        write = self.simulated.write
        self.simulated.write = lambda command: (self.sent.append(command.values["joint_position"]), write(command))[1]  # type: ignore
        config = LearningConfig(patience_s=options.pop("patience_s", 20.0))
        self.arm = AttendedRobot(
            self.robot, INTERFACE, takeover=takeover, config=config, clock=self.clock, tell=self.told.append,
            on_help=self.help.append, on_label=self.words.append, stopping=stopping,
        )  # fmt: skip
        self.env = LearningEnv(self.arm, SimScene(self.simulated) if scene else None, **options)

    def still(self) -> bool:
        """Whether the last second's commands, and the joints, stand still."""
        before = np.array(self.simulated.read().values["joint_position"])
        self.clock.wait_until(self.clock.now_ns() + int(5e8))
        return bool(np.abs(self.simulated.read().values["joint_position"] - before).max() < 2e-3)


def hold_action() -> torch.Tensor:
    return torch.tensor([[0.0, 0.0, 0.0, 0.08]])


def play(rig: Rig, steps: int) -> list[tuple[Any, ...]]:
    return [rig.env.step(hold_action()) for _ in range(steps)]


def until_interrupted(rig: Rig) -> tuple[Any, ...]:
    for _ in range(4):  # a measurement is old after two periods
        row = rig.env.step(hold_action())
        if bool(row[4]["interrupted"]):
            return row
    raise AssertionError("nothing held the robot")


@pytest.fixture(autouse=True)
def ended():
    rigs: list[Rig] = []
    init = Rig.__init__

    def remember(self: Rig, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        rigs.append(self)

    Rig.__init__ = remember  # type: ignore[method-assign]
    yield
    Rig.__init__ = init  # type: ignore[method-assign]
    for rig in rigs:
        rig.env.close()


# ------------------------------------------------------------ an environment like others


def test_source_bits_are_those_of_the_replay():
    assert (POLICY, HUMAN) == (RL_POLICY, RL_HUMAN)


def test_the_expert_solves_episodes_and_they_follow_each_other():
    rig = Rig()
    env, expert = rig.env, sim.make_expert("lift")
    obs = env.reset([5])
    assert {k: tuple(v.shape[1:]) for k, v in obs.items()} == {k: s.shape for k, s in env.observation_spec.tensors.items()}
    expert.reset(seeds=[5])
    ends = []
    while len(ends) < 2:
        before = obs
        obs, reward, terminated, truncated, info = env.step(expert.act(obs))
        assert info["source"].tolist() == [POLICY] and info["source"].dtype == torch.uint8 and not bool(info["interrupted"])
        if bool(terminated | truncated):
            ends.append((float(reward), bool(info["success"]), int(info["episode_length"])))
            cube = INTERFACE.observation_spec["observation.environment_state"].names.index("cube.z")
            assert info["final_observation"]["observation.environment_state"][0, cube] > 0.08
            assert obs["observation.environment_state"][0, cube] < 0.03  # of the next episode
            expert.reset(seeds=[rig.arm.seed])
        else:
            assert not torch.equal(before["observation.state"], obs["observation.state"])
    assert all(reward == 1.0 and success and 20 < length < 60 for reward, success, length in ends)
    assert rig.told == [] and rig.arm.report()["policy"]["ticks"] == sum(e[2] for e in ends)


def test_every_run_is_alike_and_time_ends_episodes():
    def once() -> torch.Tensor:
        rig = Rig(max_steps=6)
        first = rig.env.reset([3])["observation.state"]
        rows = play(rig, 7)
        assert [bool(r[3]) for r in rows] == [False] * 5 + [True, False]
        assert not torch.equal(first, rows[5][0]["observation.state"])
        return torch.cat([r[0]["observation.state"] for r in rows])

    assert torch.equal(once(), once())


# ------------------------------------------------------------ taking over


def test_what_is_given_in_the_tools_frame_is_remembered_in_the_policys():
    """The defect of interventions stored as they were given: here the tool points down, so its z is the world's -z."""
    given = Given((0.5, 0.0, -1.0, 0, 0, 0), "tool")
    rig = Rig(ScriptedTakeover([None, given, given, given, None]))

    class Method:
        stride = 1

        def reset(self, ids: Any, seeds: Any) -> None:
            pass

        def look(self, obs: Mapping[str, torch.Tensor], step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
            return dict(obs)

        look_last = look

        def act(self, frames: Any, step: int, generator: Any) -> torch.Tensor:
            return INTERFACE.action_spec.normalize(hold_action())

    worlds = Worlds(rig.env, Method(), (0,), 0)  # type: ignore[arg-type]
    frames = worlds.start(0, 0)
    tool = [INTERFACE.observation_spec["observation.state"].names.index(f"tool.{a}") for a in "xyz"]
    joints = [f"{j}.position" for j in INTERFACE.robot_spec.joint_names]
    rows = [INTERFACE.observation_spec["observation.state"].names.index(name) for name in joints]
    spec, moved = INTERFACE.action_spec, []
    for tick in range(5):
        at = frames["observation.state"][0]
        rotation = INTERFACE.chains[0].forward(at[rows].double().numpy()[None]).rotation[..., 0]
        made = worlds.step(tick)
        frames = made.frames
        by_person = int(torch.as_tensor(made.source)[0]) == RL_HUMAN
        assert by_person == (1 <= tick <= 3)
        wanted = (rotation @ np.array([0.5, 0.0, -1.0]) * 0.025).clip(-0.025, 0.025) if by_person else np.zeros(3)
        np.testing.assert_allclose(spec.denormalize(made.action)[0, :3].numpy(), wanted, atol=1e-6)
        moved.append((frames["observation.state"][0, tool] - at[tool]).numpy())
    assert moved[3][2] > 0.01 and wanted.sum() == 0  # up: against the tool's own z
    assert [(h.step, h.given.frame) for h in rig.help] == [(1, "tool"), (2, "tool"), (3, "tool")]
    np.testing.assert_allclose(rig.help[0].given.values, (0.5, 0, -1.0, 0, 0, 0))  # and as it was given, in the log


def test_a_person_who_takes_over_can_solve_what_the_policy_does_not():
    expert = sim.make_expert("lift")

    class Person(ScriptedTakeover):
        def watch(self, observation: Mapping[str, np.ndarray], step: int, seed: int) -> None:
            self.seen, self.step, self.seed = observation, step, seed

        def read(self) -> Given | None:
            if self.step < 4:
                return None
            if self.step == 4:
                expert.reset(seeds=[self.seed])
            action = expert.act({k: torch.from_numpy(np.array(v))[None] for k, v in self.seen.items()})
            return Given(tuple(action[0].tolist()), kind="action")

    rig = Rig(Person())
    rig.env.reset([2])
    sources, success = [], False
    while not success:
        _, _, terminated, truncated, info = rig.env.step(hold_action())
        sources.append(int(info["source"]))
        success = bool(info["success"])
        assert success or not bool(terminated | truncated)
    assert sources[:4] == [POLICY] * 4 and set(sources[4:]) == {HUMAN} and len(rig.help) == len(sources) - 4


def test_words_end_episodes_as_what_they_say():
    words: dict[int, Request] = {3: "success", 5: "failure", 9: "reset"}
    rig = Rig(ScriptedTakeover([None] * 20, words))
    rig.env.reset([1])
    ends = [(i, float(r[1]), bool(r[2]), bool(r[3])) for i, r in enumerate(play(rig, 12)) if bool(r[2] | r[3])]
    assert ends == [(2, 1.0, True, False), (4, 0.0, True, False), (8, 0.0, False, True)]


def test_words_about_the_episode_before_go_to_whoever_keeps_it():
    rig = Rig(ScriptedTakeover([None] * 9, {2: "last_success", 3: "undo", 4: "last_failure"}), max_steps=50)
    rig.env.reset([1])
    play(rig, 5)
    assert rig.words == ["last_success", "undo", "last_failure"]


# ------------------------------------------------------------ holding


def test_a_pause_holds_the_robot_and_stops_the_episodes_clock():
    class Pauses(ScriptedTakeover):
        asked = 0

        def request(self) -> Request | None:
            if self.reads == 6:
                self.asked += 1
                return "pause" if self.asked in (1, 60) else None  # again three seconds later
            return None

    rig = Rig(Pauses([Given((1.0, 0, 0, 0, 0, 0))] * 6), max_steps=10)
    rig.env.reset([4])
    began_ns, rows = rig.clock.now_ns(), play(rig, 5)
    sent = len(rig.sent)
    paused = rig.env.step(hold_action())
    assert rig.clock.now_ns() - began_ns > 3e9 and bool(paused[4]["interrupted"]) and int(paused[4]["episode_length"]) == 6
    stood = np.array(rig.sent[sent + 30 : -3])  # after it came to rest, before it went on
    assert len(stood) == 0 or np.ptp(stood, axis=0).max() < 1e-6
    state = paused[0]["observation.state"]
    assert float(state[0, 7:14].abs().max()) < 0.05 and rig.told == ["the robot holds: paused; the pause key lets it go on"]
    rows += play(rig, 4)
    assert bool(rows[-1][3]) and int(rows[-1][4]["episode_length"]) == 10  # the time limit did not run meanwhile


def test_what_is_held_stays_held_through_a_pause():
    expert = sim.make_expert("lift")
    source = ScriptedTakeover()
    rig = Rig(source)
    obs = rig.env.reset([5])
    expert.reset(seeds=[5])
    cube = INTERFACE.observation_spec["observation.environment_state"].names.index("cube.z")
    while float(obs["observation.environment_state"][0, cube]) < 0.05:
        obs, *_ = rig.env.step(expert.act(obs))
    source.requests.extend(["pause"])
    rig.arm.takeover = Later(source, 40)
    obs, *_ = rig.env.step(expert.act(obs))
    assert float(obs["observation.environment_state"][0, cube]) > 0.045
    for _ in range(30):
        obs, _, terminated, _, info = rig.env.step(expert.act(obs))
        if bool(terminated):
            break
    assert bool(info["success"])


class Later:
    """A source whose pause is said again after it was asked so many times."""

    def __init__(self, source: ScriptedTakeover, after: int, words: Iterable[Request] = ("pause",)) -> None:
        self.source, self.after, self.words = source, after, list(words)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def request(self) -> Request | None:
        word = self.source.request()
        if word is None and self.words:
            self.after -= 1
            if self.after < 0:
                return self.words.pop(0)
        return word


class Plug(ScriptedTakeover):
    """A device that is pulled out at a read, and is back after some tries; then the person lets go on."""

    def __init__(self, at: int, tries: int) -> None:
        super().__init__([UP] * at + [DeviceLost("the gamepad is gone")] + [UP] * 50)
        self.tries, self.back = tries, False

    def reopen(self) -> bool:
        self.tries -= 1
        self.back = self.tries <= 0
        return self.back

    def request(self) -> Request | None:
        if self.back:
            self.back = False
            return "pause"
        return None


def test_a_device_that_is_pulled_out_holds_the_robot_until_it_is_back():
    rig = Rig(Plug(4, 6))
    rig.env.reset([4])
    play(rig, 4)
    before_ns = rig.clock.now_ns()
    row = rig.env.step(hold_action())
    assert rig.clock.now_ns() - before_ns > 2.5e9 and bool(row[4]["interrupted"]) and row[4]["source"].tolist() == [POLICY]
    assert [line.split(";")[0] for line in rig.told] == ["the robot holds: the gamepad is gone", "the robot holds: the device is back"]
    after = rig.env.step(hold_action())
    assert after[4]["source"].tolist() == [HUMAN] and not bool(after[4]["interrupted"])


def test_a_device_that_stays_away_ends_the_run_with_the_robot_at_rest():
    rig = Rig(Plug(4, 10**6), patience_s=3.0)
    rig.env.reset([4])
    play(rig, 4)
    with pytest.raises(SafetyStop, match=r"the gamepad is gone; nobody let it go on for 3 s, and the same command goes on later"):
        rig.env.step(hold_action())
    assert rig.still()


def test_measurements_that_stay_away_shortly_hold_and_go_on_by_themselves():
    rig = Rig(frozen=True)
    rig.env.reset([4])
    play(rig, 3)
    rig.robot.frozen = True
    begun_ns = rig.clock.now_ns()
    stop = rig.clock.every(int(6e8), lambda: setattr(rig.robot, "frozen", False))
    row = until_interrupted(rig)
    stop()
    assert 5e8 < rig.clock.now_ns() - begun_ns < 2e9 and bool(row[4]["interrupted"])
    assert len(rig.told) == 1 and "newest measurement of robot" in rig.told[0] and rig.arm.gate.counts["stale_observation"] > 10
    assert not bool(rig.env.step(hold_action())[4]["interrupted"])


def test_measurements_that_stay_away_for_long_need_a_person():
    alone = Rig(frozen=True)
    alone.env.reset([4])
    play(alone, 3)
    alone.robot.frozen = True
    with pytest.raises(SafetyStop, match=r"stale_observation.*nobody is there"):
        play(alone, 3)
    rig = Rig(ScriptedTakeover(), frozen=True)
    rig.env.reset([4])
    play(rig, 3)
    rig.robot.frozen = True
    rig.arm.takeover = Later(ScriptedTakeover(), 3)
    rig.clock.every(int(14e8), lambda: setattr(rig.robot, "frozen", False))
    until_interrupted(rig)
    assert not rig.arm.gate.latched
    assert len(rig.told) == 2 and "stopped the robot (stale_observation" in rig.told[1]
    play(rig, 3)


def test_an_action_that_is_not_finite_never_reaches_the_robot():
    rig = Rig(Later(ScriptedTakeover(), 8))
    rig.env.reset([4])
    play(rig, 3)
    row = rig.env.step(hold_action() * float("nan"))
    assert bool(row[4]["interrupted"]) and "non_finite" in rig.told[0] and np.isfinite(np.array(rig.sent)).all()
    assert not bool(rig.env.step(hold_action())[4]["interrupted"])


def test_learning_that_takes_long_between_two_steps_holds_the_robot_and_goes_on():
    rig = Rig()
    rig.env.reset([4])
    for _ in range(4):
        rig.env.step(torch.tensor([[0.025, 0.0, 0.0, 0.08]]))
    rig.clock.wait_until(rig.clock.now_ns() + int(3e9))  # no action comes
    assert rig.arm.gate.latched == "expired" and rig.still()
    row = rig.env.step(hold_action())
    assert bool(row[4]["interrupted"]) and not rig.arm.gate.latched and "no action came for 3." in rig.told[0]
    play(rig, 2)


def test_a_stop_that_is_asked_for_comes_at_once_even_while_paused():
    asked: list[bool] = []
    rig = Rig(ScriptedTakeover([None] * 9, {3: "pause"}), stopping=lambda: bool(asked))
    rig.env.reset([4])
    play(rig, 2)
    assert rig.env.control() is None
    rig.clock.every(int(1e9), lambda: asked.append(True))
    rig.env.step(hold_action())
    assert rig.env.control() == "stop" and rig.still()
    rig = Rig(ScriptedTakeover([None] * 9, {2: "stop"}))
    rig.env.reset([4])
    play(rig, 2)
    assert rig.env.control() == "stop"


def test_a_defect_in_the_control_thread_is_ours_and_is_raised():
    rig = Rig()
    rig.env.reset([4])
    play(rig, 2)
    rig.arm.gate.step = lambda *a: 1 / 0  # type: ignore[assignment, method-assign]
    with pytest.raises(ZeroDivisionError):
        play(rig, 2)


# ------------------------------------------------------------ over the network


def test_over_dds_a_person_takes_over_and_a_robot_that_is_gone_ends_the_run_at_rest(serve, domain):
    """A robot in a process of its own, which is killed. The limits of time are wide: tests share their machine."""
    server = serve("lift")
    robot = DdsRobot(INTERFACE.robot_spec, objects=INTERFACE.objects, domain=domain, name="learner")
    limits = replace(make_gate(INTERFACE).config, observation_ttl_s=1.0, latch_after_s=2.0, command_ttl_max_s=2.0)
    told: list[str] = []
    arm = AttendedRobot(
        robot, INTERFACE, takeover=ScriptedTakeover([None] * 5 + [UP] * 10), gate=SafetyGate(limits, Arms.of(INTERFACE.chains)),
        config=LearningConfig(command_ttl_s=1.0, patience_s=1.0), tell=told.append,
    )  # fmt: skip
    env = LearningEnv(arm, DdsScene(robot), max_steps=10**6)
    try:
        obs = env.reset([3])
        height = INTERFACE.observation_spec["observation.state"].names.index("tool.z")
        rows = [env.step(hold_action()) for _ in range(15)]
        assert [int(r[4]["source"]) for r in rows] == [POLICY] * 5 + [HUMAN] * 10
        np.testing.assert_allclose([r[4]["executed_action"][0, 2] for r in rows], [0.0] * 5 + [0.025] * 10, atol=1e-7)
        assert float(rows[-1][0]["observation.state"][0, height] - obs["observation.state"][0, height]) > 0.05
        again = env.reset([3])
        torch.testing.assert_close(again["observation.state"][0, :7], obs["observation.state"][0, :7], atol=0.02, rtol=0)
        server.kill()
        with pytest.raises(SafetyStop, match=r"nobody let it go on|sent nothing"):
            for _ in range(200):
                env.step(hold_action())
        assert any("newest measurement of robot" in line for line in told) and all("\n" not in line for line in told)
    finally:
        env.close()
        robot.close()
