"""Topics as a device, over real DDS sockets."""

import json
import time

import numpy as np
import pytest

from robot_bridge.dds import codec
from robot_bridge.dds.messages import blank, make
from robot_bridge.teleop.topics.config import Opening, Sticks, TopicConfig, TopicJoint, TopicSource, load_topics
from robot_bridge.teleop.topics.device import TopicTakeover, TopicWords
from robot_bridge.teleop.topics.reading import reader_of
from robot_bridge.transport import DEFAULT, SENSOR, open_transport
from sinew.errors import DataError, InputError

JOINTS = (("a", "b", "c"),)
DEADLINE_S = 60.0


def vector(x, y, z):
    return make("geometry_msgs/Vector3", x=float(x), y=float(y), z=float(z))


def twist(linear, angular=(0, 0, 0)):
    return make("geometry_msgs/Twist", linear=vector(*linear), angular=vector(*angular))


def pose(position, xyzw):
    point = make("geometry_msgs/Point", **dict(zip("xyz", map(float, position), strict=True)))
    rotation = make("geometry_msgs/Quaternion", **dict(zip("xyzw", map(float, xyzw), strict=True)))
    return blank("geometry_msgs/PoseStamped", pose=make("geometry_msgs/Pose", position=point, orientation=rotation))


def joints(names, values):
    return blank("sensor_msgs/JointState", name=list(names), position=np.array(values, dtype=float))


def joy(axes, buttons):
    return blank("sensor_msgs/Joy", axes=np.array(axes, dtype=np.float32), buttons=np.array(buttons, dtype=np.int32))


class Desk:
    """A device of topics, and a node of somebody who publishes them."""

    def __init__(self, domain, config, arms=JOINTS):
        self.other = open_transport("dds", "person", domain=domain)
        self.device = TopicTakeover(config, open_transport("dds", "device", domain=domain), arms, (0.25, 0.5))
        self.publishers = {}

    def publish(self, topic, message, kind, profile=DEFAULT):
        if topic not in self.publishers:
            self.publishers[topic] = self.other.publisher(topic, kind, profile)
        self.publishers[topic].send(message)

    def until(self, does, publish=lambda: None):
        """What a condition gives, while somebody publishes."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            publish()
            if found := does():
                return found
            time.sleep(0.01)
        raise AssertionError("it did not come to pass")

    def close(self):
        self.device.close()
        self.other.close()


@pytest.fixture
def desk(domain):
    made = []

    def open_desk(*args, **options):
        made.append(Desk(domain, *args, **options))
        return made[-1]

    yield open_desk
    for one in made:
        one.close()


@pytest.mark.parametrize("profile", [DEFAULT, SENSOR])
def test_a_twist_moves_while_it_comes_and_silence_lets_go(desk, profile):
    it = desk(TopicConfig(sources=(TopicSource(topic="/t", message="geometry_msgs/Twist", frame="tool", unit="si"),)))
    given = it.until(
        it.device.read, lambda: it.publish("/t", twist((0.125, 0, 0), (0, 0, -0.25)), "geometry_msgs/Twist", profile)
    )  # fmt: skip
    assert given.values == (0.5, 0, 0, 0, 0, -0.5) and given.frame == "tool" and given.kind == "steps"
    it.until(lambda: it.device.read() is None)
    again = it.until(it.device.read, lambda: it.publish("/t", twist((1.0, 0, 0.5)), "geometry_msgs/Twist", profile))
    assert again.hold > given.hold and again.values == (1.0, 0, 0.5, 0, 0, 0)  # faster than the tool may go: its direction is kept


def test_a_pose_counts_only_while_somebody_says_that_it_does(desk):
    source = TopicSource(topic="/hand", message="geometry_msgs/PoseStamped")
    it = desk(TopicConfig(sources=(source,), enable="/on"))

    def publish(on):
        it.publish("/hand", pose((1, 2, 3), (0, 0, 1, 0)), "geometry_msgs/PoseStamped")
        if on is not None:
            it.publish("/on", make("std_msgs/Bool", data=on), "std_msgs/Bool")

    given = it.until(it.device.read, lambda: publish(True))
    assert given.values == (1, 2, 3, 0, 0, 0, 1) and given.kind == "pose"
    it.until(lambda: it.device.read() is None, lambda: publish(False))
    it.until(it.device.read, lambda: publish(True))
    it.until(lambda: it.device.read() is None, lambda: publish(None))  # the hand goes on, and nobody says any more that it counts


def test_joint_states_are_found_by_name_and_each_arm_has_a_topic(desk):
    one = TopicSource(topic="/left", message="sensor_msgs/JointState", opening=Opening(name="jaw", closed=0.0, open=0.5))
    turned = {"d": TopicJoint(name="q1", sign=-1, zero_rad=1.0)}
    two = TopicSource(topic="/right", message="sensor_msgs/JointState", arm=1, joints=turned)
    it = desk(TopicConfig(sources=(one, two)), arms=(("a", "b"), ("d", "e")))

    def publish():
        it.publish("/left", joints(("jaw", "b", "a"), (0.1, 0.2, 0.3)), "sensor_msgs/JointState")
        it.publish("/right", joints(("e", "q1"), (0.5, 0.25)), "sensor_msgs/JointState")

    given = it.until(lambda: g if (g := it.device.read()) and g.also else None, publish)
    assert given.values == (0.3, 0.2) and given.open == pytest.approx(0.2) and given.kind == "joints"
    assert given.also[0].arm == 1 and given.also[0].values == (0.75, 0.5)
    assert not TopicConfig(sources=(one, two)).tells_hold


def test_a_joystick_has_a_dead_mans_button_words_a_gripper_and_two_arms(desk):
    sticks = Sticks(hold=0, close=1, open=2, switch=3, words={"success": 4})
    it = desk(TopicConfig(sources=(TopicSource(topic="/joy", message="sensor_msgs/Joy", sticks=sticks),)), arms=(("a",), ("b",)))

    def press(*buttons):
        return lambda: it.publish("/joy", joy((0.05, 1.0, 0, -0.5, 0.25), [i in buttons for i in range(5)]), "sensor_msgs/Joy")

    given = it.until(it.device.read, press(0, 1))
    assert given.values == (1.0, 0.0, 0.25, 0, 0, -0.5) and given.open == 0.0 and given.arm == 0
    it.until(lambda: (g := it.device.read()) and g.open == 1.0, press(0, 2))
    it.until(lambda: (g := it.device.read()) and g.arm == 1, press(0, 3))
    it.until(lambda: it.device.read() is None, press(4))
    assert it.until(it.device.request) == "success" and it.device.request() is None  # once, however long it is held


def test_words_come_by_topic(domain, caplog):
    other, words = open_transport("dds", "person", domain=domain), TopicWords(open_transport("dds", "words", domain=domain), "/event")
    publisher, heard, end = other.publisher("/event", "std_msgs/String"), None, time.monotonic() + DEADLINE_S
    try:
        while heard is None and time.monotonic() < end:
            publisher.send(make("std_msgs/String", data="hooray"))
            publisher.send(make("std_msgs/String", data="Success "))
            time.sleep(0.01)
            heard = words.request()
        assert heard == "success" and words.read() is None
        assert any("'hooray' is no word" in record.getMessage() for record in caplog.records)
    finally:
        words.close()
        other.close()


def test_messages_that_make_no_sense_let_go(desk, caplog):
    it = desk(TopicConfig(sources=(TopicSource(topic="/j", message="sensor_msgs/JointState"),)))
    it.until(it.device.read, lambda: it.publish("/j", joints(("a", "b", "c"), (0, 0, 0)), "sensor_msgs/JointState"))
    it.until(lambda: it.device.read() is None, lambda: it.publish("/j", joints(("a", "x"), (0, 0)), "sensor_msgs/JointState"))
    it.until(lambda: any("has no joint 'b'; it has a, x" in r.getMessage() for r in caplog.records))
    it.until(it.device.read, lambda: it.publish("/j", joints(("a", "b", "c"), (0, 0, 0)), "sensor_msgs/JointState"))
    it.until(lambda: it.device.refused, lambda: it.publish("/j", joints(("a", "b", "c"), (0, np.nan, 0)), "sensor_msgs/JointState"))


def test_a_damaged_word_of_being_in_control_lets_go_and_nothing_more(desk):
    it = desk(TopicConfig(sources=(TopicSource(topic="/j", message="sensor_msgs/JointState"),), enable="/on"))
    assert not it.device._is_true(b"\0\1\0\0") and it.device._is_true(bytes(codec.encode(make("std_msgs/Bool", data=True))))


def test_a_pose_without_a_rotation_is_refused():
    source = TopicSource(topic="/hand", message="geometry_msgs/PoseStamped")
    read = reader_of(source, ("a",), 1, (0.25, 0.5))
    with pytest.raises(DataError, match="is no rotation"):
        read(bytes(codec.encode(pose((0, 0, 0), (0, 0, 0, 0)))))


def test_topics_are_read_from_a_file_strictly(tmp_path, domain):
    file = tmp_path / "topics.json"
    source = {"topic": "/j", "message": "sensor_msgs/JointState"}
    file.write_text(json.dumps({"sources": [source], "enable": "/on"}))
    assert load_topics(file).tells_hold and TopicConfig().tells_hold
    for change, said in (
        ({"version": 9}, "version 9"),
        ({"sources": []}, "at least one topic"),
        ({"max_age_s": 60.0}, "0.02 to 2 s"),
        ({"sources": [source, source]}, "same arm"),
        ({"sources": [{**source, "topic": "j"}]}, "begins with /"),
        ({"sources": [{**source, "message": "sensor_msgs/Imu"}]}, "unknown message of a device"),
        ({"sources": [{"topic": "/g", "message": "std_msgs/Float64"}]}, "closed"),
        ({"sources": [{**source, "message": "sensor_msgs/Joy", "sticks": {"motion": {"xx": {"index": 0}}}}]}, "unknown motion"),
        ({"sources": [{**source, "message": "sensor_msgs/Joy", "sticks": {"words": {"hooray": 0}}}]}, "unknown word"),
    ):
        file.write_text(json.dumps({"sources": [source], **change}))
        with pytest.raises(InputError, match=said) as e:
            load_topics(file)
        assert "\n" not in str(e.value)
    node = open_transport("dds", "device", domain=domain)
    with pytest.raises(InputError, match="moves arm 1; the robot has 1"):
        TopicTakeover(TopicConfig(sources=(TopicSource(topic="/j", message="sensor_msgs/JointState", arm=1),)), node, JOINTS, (1, 1))
    with pytest.raises(InputError, match="joint 'z' is none of arm 0's: a, b, c"):
        strange = TopicSource(topic="/j", message="sensor_msgs/JointState", joints={"z": TopicJoint(name="z")})
        TopicTakeover(TopicConfig(sources=(strange,)), node, JOINTS, (1, 1))
    node.close()
