"""A robot takes the views of its own calibration: through the gate, standing still, holding whenever in doubt; the truth is known."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from calibration.boards import Board
from calibration.camera import Camera
from calibration.detection import detect
from calibration.next_view import Goal
from calibration.routine import Pace
from calibration.session import find_views, read_own
from calibration.solve import solve
from robot_bridge import SteppedClock
from robot_bridge.calibrating.cell import calibrating
from robot_bridge.calibrating.hand import hand_of, hand_of_task
from robot_bridge.calibrating.mover import Care
from robot_bridge.calibrating.scene import Truth, robot_scene, task_scene
from robot_bridge.calibrating.taking import first_poses, take_views
from robot_bridge.gate import Operator
from robot_bridge.robots import load_robot
from robot_bridge.robots.kinematics import tool_poses
from robot_bridge.sim_robot import SimRobot
from sim.render import camera_matrix
from sinew.errors import InputError, SafetyStop
from sinew.progress import Progress
from sinew.protocols import Observation
from sinew.se3 import se3_act, se3_exp, se3_inverse, so3_log

BOARD, SIZE = Board(), (480, 640)
FAST = Care(speed=1.0)
QUICK = Pace(least=5, most=6)
LOOSE = Goal(position_m=2e-3, rotation_rad=6e-3)


class Cell:
    """A simulated arm with a board and all that stands around it, stepped by hand."""

    def __init__(self, place: str, seed: int = 0) -> None:
        self.physics, self.truth = task_scene(BOARD, place, seed)
        self.clock, self.operator = SteppedClock(), Operator()
        interface = self.physics.interface
        self.hand, self.chains = hand_of_task(interface), interface.chains
        self.robot = SimRobot(
            self.physics, interface.robot_spec, cameras=(self.truth.camera,), camera_rate_hz=2, image_size=SIZE, clock=self.clock
        )
        self.camera = Camera.from_matrix(camera_matrix(self.physics.scene.model, self.truth.camera, *SIZE), [0.0] * 5, SIZE[1], SIZE[0])

    @contextmanager
    def mover(self):
        with calibrating(
            self.robot, self.hand, self.truth.camera, chains=self.chains, care=FAST, operator=self.operator, clock=self.clock
        ) as mover:
            yield mover

    def take(self, folder: Path, **more):
        with self.mover() as mover:
            given = {"goal": LOOSE, "pace": QUICK, **more}
            return take_views(mover, folder, BOARD, self.camera, self.truth.mount, **given)

    def holds(self) -> bool:
        """Whether the robot stands and is sent nothing any more."""
        before, commands = self.robot.read().values["joint_position"].copy(), self.robot._command
        self.clock.wait_until(self.clock.now_ns() + 500_000_000)
        after = self.robot.read().values["joint_position"]
        return self.robot.holding and self.robot._command is commands and float(np.abs(after - before).max()) < 1e-4


@pytest.fixture
def cell():
    made = []

    def make(place: str, seed: int = 0) -> Cell:
        made.append(Cell(place, seed))
        return made[-1]

    yield make
    for one in made:
        one.physics.close()


# ---------------------------------------------------------------- the hand


@pytest.mark.parametrize("name", ["ur5e", "xarm7", "aloha"])
def test_a_hand_is_where_the_robots_frames_have_it_and_finds_its_way_back(name):
    config, rng = load_robot(name), np.random.default_rng(0)
    spec = config.spec
    home = np.array(spec.home_rad)
    for arm in range(config.arms):
        hand = hand_of(config, arm)
        joints = home + rng.uniform(-0.4, 0.4, (20, len(home)))
        poses = np.array([hand.pose(q) for q in joints])
        world = np.array([tool_poses(config, q)[arm] for q in joints])
        assert np.abs(hand.T_world_base @ poses - world).max() < 1e-6
        found, reached = hand.near(poses, home)
        assert np.abs(reached - poses).max() < 2e-3 and (np.abs(np.array([hand.pose(q) for q in found]) - reached).max()) < 1e-9
        others = [j for j in range(len(home)) if j not in hand.part]
        assert (found[:, others] == home[others]).all()
        assert (found >= np.array(spec.position_low_rad)).all() and (found <= np.array(spec.position_high_rad)).all()
        step, q = 1e-6, joints[0]
        numeric = []
        for j in hand.part:
            moved = se3_inverse(hand.pose(q)) @ hand.pose(q + step * np.eye(len(q))[j])
            numeric.append(np.concatenate([moved[:3, 3], so3_log(moved[:3, :3])]) / step)
        assert np.abs(np.array(numeric).T - hand.jacobian(q)).max() < 1e-4


def test_what_no_hand_can_be_is_told():
    with pytest.raises(InputError, match="sinew robot add"):
        hand_of(load_robot("ros2_control"))
    with pytest.raises(InputError, match=r"--arm 2.*arms 0 to 1"):
        hand_of(load_robot("aloha"), 2)
    with pytest.raises(InputError, match="nohand"):
        hand_of(load_robot("ur5e"), 0, "nohand")
    with pytest.raises(InputError, match="moved by"):
        hand_of(load_robot("ur5e"), 0, "forearm_link")
    assert hand_of(load_robot("ur5e"), 0, "wrist_3_link").hand_frame == "wrist_3_link"


def test_a_hand_that_cannot_reach_comes_as_near_as_it_can():
    config = load_robot("ur5e")
    hand, home = hand_of(config), np.array(config.spec.home_rad)
    far = hand.pose(home) @ se3_exp(np.array([0.0, 0, 0, 0, 0, 0]))
    far[0, 3] += 3.0
    joints, reached = hand.near(far[None], home)
    assert np.isfinite(joints).all() and np.linalg.norm(reached[0, :3, 3] - far[:3, 3]) > 1.0


# ---------------------------------------------------------------- the scene


@pytest.mark.parametrize(("robot", "place"), [("", "table"), ("", "hand"), ("ur5e", "table"), ("xarm7", "hand")])
def test_the_truth_of_a_scene_is_where_its_pictures_have_the_board(robot, place, tmp_path):
    if robot:
        config = load_robot(robot)
        physics, truth = robot_scene(config, BOARD, place, 1)
        hand, model = hand_of(config), physics.model
    else:
        physics, truth = task_scene(BOARD, place, 1)
        hand, model = hand_of_task(physics.interface), physics.scene.model
    image = physics.image(truth.camera, *SIZE)
    camera = Camera.from_matrix(camera_matrix(model, truth.camera, *SIZE), [0.0] * 5, SIZE[1], SIZE[0])
    T_base_hand = hand.pose(physics.joint_position)
    physics.close()
    board = se3_inverse(T_base_hand @ truth.T) @ truth.Z if truth.mount == "in_hand" else se3_inverse(truth.T) @ T_base_hand @ truth.Z
    found = detect(image, BOARD)
    assert not found.refused and len(found.ids) >= 20
    off = found.pixels - camera.project(se3_act(board, BOARD.points[found.ids]))
    assert np.sqrt(np.mean(off**2)) < 0.2 and np.abs(off.mean(0)).max() < 0.06
    off_m, off_rad = truth.error(truth.drawing)
    assert 0 < off_m < 0.02 and 0 < off_rad < np.deg2rad(6)
    truth.save(tmp_path / "t.json")
    again = Truth.load(tmp_path / "t.json")
    assert again.mount == truth.mount and np.array_equal(again.T, truth.T)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(InputError, match="no truth"):
        Truth.load(tmp_path / "t.json")


# ---------------------------------------------------------------- the routine on a robot


def test_first_poses_turn_about_all_axes_and_begin_where_the_robot_stands():
    here = se3_exp(np.array([0.3, 0.1, 0.4, 0.2, 2.0, 0.1]))
    poses = first_poses(here, "in_hand")
    assert np.array_equal(poses[0], here)
    turns = np.array([so3_log((se3_inverse(here) @ p)[:3, :3]) for p in poses[1:5]])
    assert np.linalg.matrix_rank(turns[:2], tol=0.05) == 2 and np.linalg.norm(turns, axis=1).max() < np.deg2rad(25)
    assert all(np.allclose(p[:3, 3], here[:3, 3]) for p in poses)


@pytest.mark.parametrize("place", ["table", "hand"])
def test_a_robot_calibrates_its_camera_and_holds(cell, tmp_path, place):
    here, speeds, told = cell(place), [], []
    links, last = here.hand, [here.physics.joint_position.copy()]

    def watch() -> None:
        now = here.physics.joint_position
        speeds.append(links.tool_speed(now, (now - last[0]) / 0.01))
        last[0] = now.copy()

    here.clock.every(10_000_000, watch)
    outcome = here.take(tmp_path / "s", confirm=lambda what: told.append(what) is None)
    assert outcome.reached and len(outcome.views) >= 5 and len(told) == 1 and "slowly to up to 6 places" in told[0]
    assert here.holds() and max(speeds) < 0.25 * 1.05
    result = solve(outcome.views, [here.camera], here.truth.mount)
    off_m, off_rad = here.truth.error(result.T[0])
    assert off_m < 0.5e-3 and off_rad < np.deg2rad(0.1)
    # what lies on the disk says the same
    session = read_own(tmp_path / "s")
    assert session.board == BOARD and session.mount == here.truth.mount and session.cameras == (here.camera,)
    stamps = [shot.stamp_ns for shot in session.shots]
    assert stamps == sorted(stamps) and all(shot.joint_jacobian.shape == (6, 7) for shot in session.shots)
    again = solve(find_views(session).views, [here.camera], here.truth.mount)
    assert np.abs(again.T - result.T).max() < 1e-5


def test_what_was_interrupted_is_kept_and_gone_on_with(cell, tmp_path):
    here = cell("hand")

    class Stops(Progress):
        views = 0

        def advance(self, n: int = 1, **values: float) -> None:
            self.views += n
            if self.views == 3:
                here.operator.press("key 'x'")

    with pytest.raises(SafetyStop, match=r"stopped.*key 'x'.*holds"):
        here.take(tmp_path / "s", progress=Stops())
    assert here.holds() and len(read_own(tmp_path / "s").shots) == 3
    with pytest.raises(InputError, match="--resume"):
        cell("hand").take(tmp_path / "s")
    other = cell("hand")
    outcome = other.take(tmp_path / "s", resume=True)
    assert len(outcome.views) >= 5 and len(read_own(tmp_path / "s").shots) > 3
    with pytest.raises(InputError, match="taken with mount to_hand"):
        cell("table").take(tmp_path / "s", resume=True)


def test_nothing_moves_before_the_board_is_seen_and_somebody_agreed(cell, tmp_path):
    here = cell("table")
    with here.mover() as mover:
        other = Board(dictionary="DICT_4X4_50", columns=4, rows=4)
        with pytest.raises(InputError, match=r"does not see the board.*0 of 9 corners") as e:
            take_views(mover, tmp_path / "a", other, here.camera, "in_hand")
        assert "\n" not in str(e.value) and not (tmp_path / "a").exists()
        small = Camera(320, 240, (300.0, 300.0), (160.0, 120.0))
        with pytest.raises(InputError, match="640 x 480, its intrinsics are for 320 x 240"):
            take_views(mover, tmp_path / "a", BOARD, small, "in_hand")
        with pytest.raises(SafetyStop, match="not allowed to move"):
            take_views(mover, tmp_path / "b", BOARD, here.camera, "in_hand", confirm=lambda what: False)
    assert here.robot._command is None


def test_a_camera_that_gives_no_picture_ends_it_and_the_robot_holds(cell, tmp_path):
    here = cell("hand")
    key = f"images.{here.truth.camera}"
    read, count = here.robot.read, [0]

    def blind() -> Observation:
        seen = read()
        count[0] += 1
        if here.clock.now_ns() < 4_000_000_000:
            return seen
        stamps = {k: min(v, 4_000_000_000) for k, v in seen.stamps_ns.items()}
        return Observation(seen.stamp_ns, seen.seq, seen.values, stamps)

    here.robot.read = blind  # type: ignore[method-assign]
    with pytest.raises(SafetyStop, match=r"gave no new picture for 5 s.*holds") as e:
        here.take(tmp_path / "s")
    assert "\n" not in str(e.value) and here.holds() and key in read().values
    assert len(read_own(tmp_path / "s").shots) >= 1


def test_a_robot_that_does_not_move_is_told_in_one_line_and_not_pushed_on(cell, tmp_path):
    here = cell("hand")
    step = here.physics.step

    def stuck(joint_target, gripper_target, duration_s):
        step(here.physics.joint_position.copy(), gripper_target, duration_s)

    here.physics.step = stuck  # type: ignore[method-assign]
    with pytest.raises(SafetyStop, match=r"safety gate stopped robot arm: (frozen|not_following).*holds") as e:
        here.take(tmp_path / "s")
    assert "\n" not in str(e.value) and here.holds() and len(read_own(tmp_path / "s").shots) == 1


def test_poses_out_of_reach_and_ways_that_are_not_free_are_refused(cell):
    here = cell("table")
    with here.mover() as mover:
        pose = here.hand.pose(here.physics.joint_position)
        far, low, outside = pose.copy(), pose.copy(), pose.copy()
        far[0, 3] += 2.0
        low[2, 3] = -0.1
        outside[1, 3] += 0.5
        with pytest.raises(InputError, match="cannot reach"):
            mover.move(far)
        for wrong in (low, outside):
            with pytest.raises(InputError, match="not free"):
                mover.move(wrong)
            assert not mover.free(wrong)
        assert mover.free(pose) and here.robot._command is None


def test_over_dds_with_a_robot_in_a_process_of_its_own(serve, domain, tmp_path):
    from robot_bridge import DdsRobot
    from robot_bridge.calibrating.feed import lens, picture_topic
    from sim import make_interface

    place = {"board": "hand", "cameras": ("front",), "camera_rate_hz": 5.0, "image_size": (480, 640), "realtime": False}
    process = serve("reach", **place)
    truth = task_scene(BOARD, "hand", 0)[1]
    interface = make_interface("reach")
    robot = DdsRobot(interface.robot_spec, cameras=("front",), domain=domain, name="calibrate")
    hand, pace, outcome, stops = hand_of_task(interface), Pace(least=4, most=5, begin=3), None, []
    try:
        robot.connect(60)
        camera, frame = lens(robot.node, picture_topic("front", robot.contract)[0], 60)
        assert frame == "front_optical_frame" and (camera.width, camera.height) == (640, 480)
        while outcome is None and len(stops) < 20:
            try:
                with calibrating(robot, hand, "front", chains=interface.chains, care=FAST, realtime=False) as mover:
                    outcome = take_views(mover, tmp_path / "s", BOARD, camera, "to_hand", goal=LOOSE, pace=pace, resume=bool(stops))
            except SafetyStop as e:  # a busy machine keeps one of the processes waiting: the robot holds, and it is gone on with
                stops.append(str(e))
    finally:
        robot.close()
    assert process.poll() is None and outcome is not None and len(outcome.views) >= 4, stops
    off_m, off_rad = truth.error(solve(outcome.views, [camera], "to_hand").T[0])
    assert off_m < 2e-3 and off_rad < np.deg2rad(0.3)
