"""Calibrations on the network: what camera drivers tell of their lenses, and what is told to ROS of where cameras are."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from calibration.camera import Camera
from calibration.results import Mounted, camera_info, write_mounted
from robot_bridge.calibrating.feed import CameraFeed, camera_of, lens, picture_topic
from robot_bridge.calibrating.publish import INFO, STATIC, TF_MESSAGE, Publication, info_message
from robot_bridge.dds import codec
from robot_bridge.dds.messages import make
from robot_bridge.images import info_topic
from robot_bridge.robots import load_robot
from robot_bridge.transport import LATCHED, SENSOR, open_transport
from sinew.errors import DataError, InputError
from sinew.se3 import matrix_to_quaternion, quaternion_to_matrix, se3, se3_exp

LENSES = {
    "pinhole": Camera(640, 480, (600.0, 605.0), (320.0, 238.0), (-0.2, 0.1, 0.001, -0.002, 0.03)),
    "rational": Camera(640, 480, (600.0, 605.0), (320.0, 238.0), (-0.2, 0.1, 0.001, -0.002, 0.03, 0.1, 0.2, 0.3), "rational"),
    "fisheye": Camera(640, 480, (300.0, 301.0), (320.0, 238.0), (0.1, -0.02, 0.003, 0.0), "fisheye"),
}


def mounted(name: str = "front", mount: str = "to_hand") -> Mounted:
    T = se3_exp(np.array([0.4, -0.2, 0.7, 0.3, 2.0, -0.5]))
    return Mounted(
        name=name, mount=mount, T=T, covariance=1e-8 * np.eye(6), camera=LENSES["pinhole"], Z=np.eye(4), pixel_sigma=0.2,
        robot_sigma_m=1e-4, robot_sigma_rad=1e-4,
    )  # type: ignore[arg-type]  # fmt: skip


def wait(done, problem: str, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not done():
        assert time.monotonic() < end, problem
        time.sleep(0.02)


@pytest.fixture
def nodes(domain):
    made = []

    def node(name: str):
        made.append(open_transport("dds", name, domain=domain))
        return made[-1]

    yield node
    for one in made:
        one.close()


def latched(node, topic: str, message: str) -> bytes:
    """What somebody who comes late is told."""
    subscription = node.subscription(topic, message, LATCHED)
    assert subscription.wait(30), f"nothing on {topic}"
    return subscription.take()[-1].data


@pytest.mark.parametrize("model", LENSES)
def test_a_lens_comes_back_from_camera_info_as_it_was(model):
    told = camera_info(LENSES[model], "front")
    message = codec.decode(bytes(codec.encode(info_message(told, "f"))), INFO)
    again = camera_of(message, "/front/camera_info")
    assert again == LENSES[model] and message.header.frame_id == "f"
    flat = camera_of(message, "/front/camera_info", rectified=True)
    assert flat.focal == LENSES[model].focal and not any(flat.distortion)


def test_a_driver_that_is_not_calibrated_is_told():
    message = info_message(camera_info(LENSES["pinhole"], "front"), "f")
    message.k = np.zeros(9)
    with pytest.raises(InputError, match=r"not calibrated.*sinew calibrate intrinsics"):
        camera_of(message, "/front/camera_info")
    message.k, message.distortion_model = np.eye(3).ravel(), "omni"
    with pytest.raises(InputError, match="'omni' lens; known are plumb_bob"):
        camera_of(message, "/front/camera_info")


def test_topics_follow_the_contract_or_the_usual_names():
    contract = load_robot("ur5e").contract
    assert picture_topic("wrist", contract) == ("/wrist/image_raw", "sensor_msgs/Image")
    assert picture_topic("/a/b/compressed") == ("/a/b/compressed", "sensor_msgs/CompressedImage")
    assert picture_topic("front") == ("/front/image_raw", "sensor_msgs/Image")
    assert info_topic("/cam/color/image_raw/compressed") == "/cam/color/camera_info"
    with pytest.raises(InputError, match=r"no camera 'side'.*front, wrist"):
        picture_topic("side", contract)


def test_pictures_and_lens_are_taken_from_the_network(nodes):
    driver, ours = nodes("driver"), nodes("ours")
    with pytest.raises(InputError, match=r"no picture on /front/image_raw within 0.1 s.*none"):
        CameraFeed(ours, "/front/image_raw").picture(0.1)
    with pytest.raises(InputError, match=r"nothing on /front/camera_info.*--intrinsics"):
        lens(ours, "/front/image_raw", 0.1)
    pictures = driver.publisher("/front/image_raw", "sensor_msgs/Image", SENSOR)
    infos = driver.publisher("/front/camera_info", INFO, LATCHED)
    infos.send(info_message(camera_info(LENSES["pinhole"], "front"), "front_color_optical_frame"))
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    feed = CameraFeed(ours, "/front/image_raw")
    wait(lambda: pictures.subscribers >= 2, "nobody subscribed")

    import threading

    quit_event = threading.Event()

    def send() -> None:
        while not quit_event.wait(0.02):
            pictures.write(codec.encode_image(image, 5, "f"))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        got, stamp_ns = feed.picture(30)
    finally:
        quit_event.set()
        thread.join()
    assert np.array_equal(got, image) and stamp_ns == 5


def test_cameras_are_told_to_whoever_comes_late_in_one_message(nodes, tmp_path):
    cameras = [mounted("front"), mounted("wrist", "in_hand")]
    write_mounted(cameras, {}, tmp_path, base_frame="base", hand_frame="flange", camera_frames=("", "wrist_color_optical_frame"))
    publication = Publication(tmp_path, nodes("calibration"))
    late = nodes("late")
    told = {t.child: t for t in codec.decode_transforms(latched(late, STATIC, TF_MESSAGE))}
    assert {c: t.parent for c, t in told.items()} == {"front_optical_frame": "base", "wrist_color_optical_frame": "flange"}
    pose = told["front_optical_frame"].pose
    assert np.allclose(se3(quaternion_to_matrix(pose[3:]), pose[:3]), cameras[0].T, atol=1e-9)
    assert publication.info_topics == ("/front/calibrated/camera_info", "/wrist/calibrated/camera_info")
    info = codec.decode(latched(late, "/front/calibrated/camera_info", INFO), INFO)
    assert camera_of(info, "there") == cameras[0].camera and info.header.frame_id == "front_optical_frame"
    assert codec.decode(latched(late, "/wrist/calibrated/camera_info", INFO), INFO).header.frame_id == "wrist_color_optical_frame"


def test_a_frame_that_has_a_parent_is_placed_by_the_root_of_its_driver(nodes, tmp_path):
    camera = mounted("front")
    write_mounted([camera], {}, tmp_path)
    driver = nodes("driver")
    inner = se3_exp(np.array([0.01, 0.02, 0.0, 0.0, 1.5, 0.0]))
    seven = (*inner[:3, 3], *matrix_to_quaternion(inner[:3, :3]))
    transforms = driver.publisher(STATIC, TF_MESSAGE, LATCHED)
    links = [codec.Transform(0, "camera_link", "mid", (0, 0, 0.1, 1, 0, 0, 0)), codec.Transform(0, "mid", "front_optical_frame", seven)]
    transforms.write(codec.encode_transforms(links))
    with pytest.raises(InputError, match=r"has parent mid on /tf_static already.*--root camera_link"):
        Publication(tmp_path, nodes("a"))
    with pytest.raises(InputError, match="does not hang on elsewhere"):
        Publication(tmp_path, nodes("b"), root="elsewhere")
    placed = Publication(tmp_path, nodes("c"), root="camera_link").placed[0]
    assert (placed.parent, placed.child) == ("base_link", "camera_link")
    up = np.eye(4)
    up[2, 3] = 0.1
    assert np.allclose(placed.pose @ up @ inner, camera.T, atol=1e-9)  # the optical frame lands where it was calibrated


def test_a_driver_is_given_its_lens_or_its_refusal_is_told(nodes, tmp_path):
    write_mounted([mounted("front")], {}, tmp_path)
    kept, driver = [], nodes("driver")

    def answer(request):
        kept.append(request.camera_info)
        return make("sensor_msgs/SetCameraInfo_Response", success=len(kept) == 1, status_message="read-only")

    driver.server("/front/set_camera_info", "sensor_msgs/SetCameraInfo", answer)
    publication = Publication(tmp_path, nodes("ours"))
    assert publication.set_camera_info(30) == ["/front/set_camera_info"]
    assert camera_of(kept[0], "there") == LENSES["pinhole"]
    with pytest.raises(InputError, match="refused the lens: read-only"):
        publication.set_camera_info(30)


def test_results_that_contradict_themselves_are_refused(nodes, tmp_path):
    node = nodes("ours")
    with pytest.raises(InputError, match="cannot be read"):
        Publication(tmp_path / "none", node)
    write_mounted([mounted("front")], {}, tmp_path)
    path = tmp_path / "front.static_tf.yaml"
    text = path.read_text()
    path.write_text("transforms: 5")
    with pytest.raises(DataError, match="no transform"):
        Publication(tmp_path, node)
    path.unlink()
    with pytest.raises(InputError, match="sinew calibrate handeye"):
        Publication(tmp_path, node)
    path.write_text(text)
    write_mounted([replace(mounted("front"), T=np.eye(4))], {}, tmp_path / "other")
    (tmp_path / "other/front.static_tf.yaml").write_text(text)
    with pytest.raises(DataError, match="says something else"):
        Publication(tmp_path / "other", node)
    write_mounted([mounted("front"), mounted("wrist")], {}, tmp_path)
    with pytest.raises(InputError, match="--root x is for one camera"):
        Publication(tmp_path, node, root="x")
