"""Boxes and planes on every link, distance between links, singular poses, speed of the tools."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest

from robot_bridge.gate import GateConfig, SafetyGate
from robot_bridge.kinematics import Arm, Arms, LinkPoint
from robot_bridge.safety.collision import SelfCollision, link_points
from sinew.errors import InputError
from sinew.protocols import Command, Observation

PLANAR = Arm(
    anchors=((0, 0, 0), (0.4, 0, 0), (0.7, 0, 0)), axes=((0, 0, 1), (0, 0, 1), (0, 0, 1)), tool=(0.9, 0.0, 0.0),
    links=(LinkPoint(1, (0.4, 0, 0), 0.05), LinkPoint(1, (0.7, 0, 0), 0.05)),
)  # fmt: skip
"""Three links of 0.4, 0.3 and 0.2 m in a plane; the second is a capsule of 5 cm."""
XML = """<mujoco><worldbody><geom name="post" type="capsule" fromto="-.1 .3 0 -.1 .3 .1" size=".02"/>
<body name="a"><joint name="j0" axis="0 0 1"/><geom name="upper" type="capsule" fromto="0 0 0 .4 0 0" size=".03"/>
<body name="b" pos=".4 0 0"><joint name="j1" axis="0 0 1"/><geom name="lower" type="capsule" fromto="0 0 0 .3 0 0" size=".03"/>
<body name="c" pos=".3 0 0"><joint name="j2" axis="0 0 1"/><geom name="hand" type="capsule" fromto="0 0 0 .2 0 0" size=".02"/>
<geom name="brick" type="box" size=".02 .01 .03" pos=".1 0 0"/>
</body></body></body></worldbody></mujoco>"""
JOINTS = ("j0", "j1", "j2")


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(XML)  # pyright: ignore[reportAttributeAccessIssue]


def collision_of(model) -> SelfCollision:
    return SelfCollision(model, JOINTS, [(model.geom("upper").id, model.geom("hand").id), (model.geom("post").id, model.geom("hand").id)])


class Drive:
    """Sends a gate targets and keeps what it emits."""

    def __init__(self, gate: SafetyGate, start: Any = (0.0, 0.0, 0.0)) -> None:
        self.gate, self.now_ns, self.path = gate, 0, [np.array(start, dtype=float)]
        assert gate.seed(self.seen(), 0) == "", gate.events

    def seen(self) -> Observation:
        return Observation(self.now_ns, 0, {"joint_position": self.path[-1], "gripper": np.array(0.0)})

    def __call__(self, target: Any, ticks: int = 1) -> Any:
        verdict: Any = None
        for _ in range(ticks):
            self.now_ns += round(self.gate.config.dt_s * 1e9)
            near = self.path[-1] + np.clip(np.asarray(target) - self.path[-1], -0.2, 0.2)
            verdict = self.gate.check(Command(self.now_ns, self.now_ns, 0.1, {"joint_position": near}), self.seen(), self.now_ns)
            self.path.append(verdict.joint_position)
        return verdict


@pytest.mark.parametrize("rate_hz", [100.0, 500.0])
def test_no_link_passes_a_plane_that_the_tool_is_free_to_be_behind(spec, rate_hz):
    """The elbow, not the tool, meets the plane y <= 0.3."""
    arms = Arms([PLANAR])
    gate = SafetyGate(GateConfig.of(spec, rate_hz, keep_out=((0.0, -1.0, 0.0, -0.3),)), arms)
    drive = Drive(gate)
    drive([1.4, -1.5, 0.0], ticks=round(2.5 * rate_hz))
    edge = (arms.points(np.array(drive.path)) + arms.radii_m[:, None])[:, :, 1].max(axis=1)
    assert edge.max() <= 0.3 and edge[-1] > 0.25 and gate.counts["workspace"]
    drive([0.5, -0.5, 0.0], ticks=round(rate_hz))  # away from it
    assert np.allclose(drive.path[-1], [0.5, -0.5, 0.0], atol=1e-6)


def test_a_cell_box_is_for_links_and_a_workspace_for_tools(spec):
    arms = Arms([PLANAR])
    box = {"workspace_low_m": (-1, -0.2, -1), "workspace_high_m": (1, 0.2, 1), "cell_low_m": (-1, -0.5, -1), "cell_high_m": (1, 0.5, 1)}
    drive = Drive(SafetyGate(GateConfig.of(spec, 100.0, **box), arms))
    for target in np.random.default_rng(0).uniform(-1.5, 1.5, (12, 3)):
        drive(target, ticks=60)
    points = arms.points(np.array(drive.path))
    assert np.abs(points[:, 0, 1]).max() <= 0.2 < np.abs(points[:, 1:, 1]).max() <= 0.5


def test_links_keep_apart(spec, model):
    """The hand is folded back on the upper arm, and swung at a post, at every speed that the limits allow."""
    collision = collision_of(model)
    wide = {"position_low_rad": (-3.1,) * 3, "position_high_rad": (3.1,) * 3}
    drive = Drive(SafetyGate(GateConfig.of(spec, 100.0, **wide), Arms([PLANAR]), collision=collision))
    drive([0.0, 2.6, 2.2], ticks=250)
    assert drive.gate.counts["self_collision"]
    rng = np.random.default_rng(1)
    for target in rng.uniform(-3.0, 3.0, (25, 3)):
        drive(target, ticks=70)
    distances = collision.distances(np.array(drive.path), np.arange(2))
    assert 0.009 <= distances.min() < 0.05  # the margin is 10 mm, and it went near it


def test_a_robot_does_not_start_where_its_links_touch(spec, model):
    wide = {"position_low_rad": (-3.1,) * 3, "position_high_rad": (3.1,) * 3}
    gate = SafetyGate(GateConfig.of(spec, 100.0, **wide), collision=collision_of(model))
    measured = {"joint_position": np.array([0.0, 2.9, 2.9]), "gripper": np.array(0.0)}
    assert gate.seed(Observation(0, 0, measured), 0) == "start_pose" and "upper and hand" in gate.events[-1].detail


def test_levers_of_pairs_bound_how_links_come_nearer(model):
    collision = collision_of(model)
    rng = np.random.default_rng(0)
    q = rng.uniform(-2.5, 2.5, (300, 3))
    moved = q + rng.normal(size=q.shape) * 0.05
    change = np.abs(collision.distances(moved, np.arange(2)) - collision.distances(q, np.arange(2)))
    assert (change <= np.abs(moved - q) @ collision.levers_m.T + 1e-9).all()
    assert collision.levers_m[0, 0] == 0.0 and collision.levers_m[1, 0] > 0.0  # the base joint parts only hand and post


def test_link_points_are_the_hull_of_the_geoms(model):
    points = link_points(model, JOINTS)
    assert [p.joint for p in points] == [1, 1] + [2] * 10
    assert np.allclose(sorted(p.position for p in points[:2]), [[0.4, 0, 0], [0.7, 0, 0]]) and points[0].radius_m == 0.03
    corners = np.array([p.position for p in points[4:]])
    assert np.allclose(corners.min(axis=0), [0.78, -0.01, -0.03]) and np.allclose(corners.max(axis=0), [0.82, 0.01, 0.03])


@pytest.mark.parametrize("rate_hz", [100.0, 500.0])
def test_first_run_keeps_every_tool_below_a_quarter_of_a_metre_per_second(spec, rate_hz):
    arms = Arms([PLANAR])
    config = GateConfig.of(spec, rate_hz, first_run=True, jerk_max_rad_s3=(300.0, 600.0, 900.0))
    assert config.tcp_speed_m_s == 0.25
    drive = Drive(SafetyGate(config, arms))
    for i, target in enumerate(np.random.default_rng(0).uniform(-1.5, 1.5, (10, 3))):
        drive(target, ticks=round(0.5 * rate_hz))
        if i % 3 == 2:  # a stop in between
            drive.path += [drive.gate.rest(drive.now_ns).joint_position for _ in range(round(0.25 * rate_hz))]
            drive.now_ns += 250_000_000
    tool = arms.points(np.array(drive.path))[:, 0]
    speed = np.linalg.norm(np.diff(tool, axis=0), axis=1) * rate_hz
    assert speed.max() <= 0.25 and speed.max() > 0.24 and drive.gate.counts["tcp_speed"]


def test_a_singular_pose_is_approached_slowly_not_reached_and_left_freely(spec):
    """The planar arm straightens out: for its 2 directions, with the third joint and the tool's turn left out, that is singular."""

    class Planar(Arms):
        def jacobians(self, joints):
            return [np.concatenate((super().jacobians(joints)[0][:2], np.zeros((1, 3))))[:2]]

    arms = Planar([PLANAR])
    space = SafetyGate(GateConfig.of(spec, 100.0, singularity_slow=17.0, singularity_stop=30.0), arms)
    drive = Drive(space, (0.0, 1.0, 0.3))
    verdict = drive([0.0, 0.0, 0.0], ticks=400)
    assert drive.gate.counts["singularity"] and verdict.reason == "singularity"
    worst = max(drive.gate._space.condition(q) for q in drive.path)
    assert 17.0 < worst <= 31.0
    drive([0.0, 1.0, 0.3], ticks=150)
    assert np.allclose(drive.path[-1], [0.0, 1.0, 0.3], atol=1e-6)


def test_limits_that_need_kinematics_are_refused_without(spec):
    for change in ({"first_run": True}, {"keep_out": ((0.0, 0.0, 1.0, 0.0),)}, {"tcp_speed_max_m_s": 1.0}):
        with pytest.raises(InputError, match="kinematics"):
            SafetyGate(GateConfig.of(spec, 100.0, **change))
    with pytest.raises(InputError, match="unit normals"):
        GateConfig.of(spec, keep_out=((0.0, 0.0, 2.0, 0.0),))
    with pytest.raises(InputError, match="raise the jerk limit"):
        GateConfig.of(spec, jerk_max_rad_s3=(50.0, 100.0, 200.0))
    with pytest.raises(InputError, match="singularity_slow"):
        GateConfig.of(spec, singularity_slow=40.0, singularity_stop=30.0)
    with pytest.raises(InputError, match="6 joints"):
        SafetyGate(GateConfig.of(spec, 100.0), Arms([PLANAR, PLANAR]))


def test_self_collision_names_what_is_wrong(model):
    with pytest.raises(InputError, match="joint"):
        SelfCollision(model, ("j0", "jx"), [(0, 1)])
    with pytest.raises(InputError, match="no pairs"):
        SelfCollision(model, JOINTS, [])
