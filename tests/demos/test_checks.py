"""Every fault that is planted is found with its episode and frames and told what to do; sound data of every task raise no alarm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import demos
from demos.checks.tasks import is_slip, letters_apart
from sinew.progress import Progress
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

NAMES = ("joint1.position", "joint2.position", "joint1.velocity", "gripper")
STATE = TensorSpec(shape=(4,), unit="rad,rad,rad/s,m", names=NAMES, low=(-3.0, -3.0, -9.0, 0.0), high=(3.0, 3.0, 9.0, 0.08))
ACTION = ActionSpec(kind="joint_position", low=(-3.0, -3.0), high=(3.0, 3.0), rate_hz=20.0, names=("joint1", "joint2"))
LENGTH, PERIOD_NS = 50, 50_000_000


def motion(episode: int) -> dict[str, np.ndarray]:
    """A smooth swing of two joints, another one in each episode; the gripper closes at once in its middle."""
    at = np.arange(LENGTH) / 20.0
    place = np.stack([np.sin((1 + 0.1 * episode) * at), np.cos((1.3 - 0.1 * episode) * at)], 1)
    state = np.concatenate([place, np.gradient(place[:, :1], axis=0) * 20, np.where(at > 1.2, 0.0, 0.08)[:, None]], 1)
    return {"state": state.astype(np.float32), "action": (place * 1.01).astype(np.float32), "stamp": np.arange(LENGTH) * PERIOD_NS}


def recorded(root: Path, edit=None, *, tasks=None, image=None, episodes: int = 6, state: TensorSpec = STATE) -> Path:
    """A dataset of `motion`, which edit(episode, values) may spoil."""
    tensors = {"observation.state": state, **({"observation.images.front": TensorSpec(shape=(48, 64, 3), dtype="uint8")} if image else {})}
    with demos.Writer.create(root, fps=20, observation_spec=ObservationSpec(tensors), action_spec=ACTION, task="pick up the cup") as writer:
        for episode in range(episodes):
            values = motion(episode)
            if edit is not None:
                edit(episode, values)
            for i in range(len(values["state"])):
                frame = {"observation.state": values["state"][i], "action": values["action"][i]}
                frame |= {"observation.images.front": image(episode, i)} if image else {}
                task = (tasks or {}).get(episode, "pick up the cup")
                writer.add_frame(frame, stamp_ns=int(values["stamp"][i]), task=task)
            writer.save_episode(success=True)
    return root


def only(root: Path) -> demos.Finding:
    findings = [f for f in demos.check(root).findings if f.level != "note"]
    assert len(findings) == 1, findings
    return findings[0]


def test_sound_data_raise_no_alarm(tmp_path):
    assert demos.check(recorded(tmp_path / "d")).findings == ()


def spoil(name: str, first: int, last: int, value) -> object:
    def edit(episode: int, values: dict[str, np.ndarray]) -> None:
        if episode == 3:
            part, _, element = name.partition(":")
            rows = values[part][first : last + 1]
            rows[..., int(element or 0)] = value(rows[..., int(element or 0)]) if callable(value) else value

    return edit


FAULTS = {
    "one place jumps away and back": (spoil("state:0", 20, 20, lambda v: v + 0.9), "jump", 20, 21, "joint1.position jumps from"),
    "a place is off from a frame on": (spoil("state:1", 30, 60, lambda v: v - 1.1), "jump", 30, 30, "joint2.position jumps from"),
    "a target jumps": (spoil("action:1", 20, 20, lambda v: v - 1.5), "jump", 20, 21, "joint2 jumps from"),
    "beyond its limits": (spoil("state:2", 10, 14, 11.0), "limit", 10, 14, "joint1.velocity is 11, outside -9 … 9; 5 frames"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_numbers_is_found(tmp_path, name):
    edit, kind, first, last, message = FAULTS[name]
    found = only(recorded(tmp_path / "d", edit))
    assert (found.kind, found.episode, found.frame, found.last) == (kind, 3, first, last) and message in found.message
    assert "sinew data edit" in found.advice and str(tmp_path / "d") in found.advice
    assert str(found).count("\n") == 0 and found.advice in str(found)


def test_a_state_that_freezes_is_found_and_one_that_waits_is_not(tmp_path):
    def freeze(episode: int, values: dict[str, np.ndarray]) -> None:
        if episode == 2:
            values["state"][25:] = values["state"][25]
        if episode == 4:  # stands still because nothing else is asked for
            for part in ("state", "action"):
                values[part][25:] = values[part][25]

    found = only(recorded(tmp_path / "d", freeze))
    assert (found.kind, found.episode, found.frame, found.last) == ("frozen", 2, 25, 49)
    assert "--trim 2:-24 --out NEW" in found.advice


def test_an_angle_that_wraps_around_is_called_so(tmp_path):
    def wrap(episode: int, values: dict[str, np.ndarray]) -> None:
        if episode == 1:
            values["state"][20:, 0] += 2 * np.pi

    found = only(recorded(tmp_path / "d", wrap, state=replace(STATE, low=None, high=None)))
    assert found.kind == "jump" and "joint1.position wraps around by a turn" in found.message


def stamps(change) -> object:
    def edit(episode: int, values: dict[str, np.ndarray]) -> None:
        if episode == 5:
            values["stamp"] = change(values["stamp"].copy())

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s + 200_000_000 * (np.arange(LENGTH) >= 10), "gap of 250.0 ms"),
        (lambda s: np.where(np.arange(LENGTH) == 9, 0, s), "does not rise"),
        (lambda s: s * 37 // 30, "frames are 61.7 ms apart, 16.2 per second, not 20 as the dataset says"),
        (lambda s: s * 3, "frames are 150.0 ms apart, 6.7 per second"),
    ],
)
def test_stamps_that_are_wrong_are_found(tmp_path, change, message):
    root = recorded(tmp_path / "d", stamps(change))
    found = [f for f in demos.check(root).findings if f.level != "note"]
    assert found and all((f.kind, f.episode, f.key) == ("stamp", 5, "timestamp_ns") for f in found)
    assert any(message in f.message for f in found)


def test_after_a_gap_a_large_step_is_no_jump(tmp_path):
    def pause(episode: int, values: dict[str, np.ndarray]) -> None:
        if episode == 3:
            values["stamp"][25:] += 40 * PERIOD_NS
            values["state"][25:, 0] += 1.2
            values["action"][25:, 0] += 1.2

    assert {f.kind for f in demos.check(recorded(tmp_path / "d", pause)).findings} == {"stamp"}


def test_an_episode_that_is_there_twice_and_a_run_of_copied_frames_are_found(tmp_path):
    def copy(episode: int, values: dict[str, np.ndarray]) -> None:
        if episode == 4:
            values["state"], values["action"] = motion(1)["state"], motion(1)["action"]
        if episode == 5:
            for part in ("state", "action"):
                values[part][30:45] = motion(2)[part][10:25]

    found = [f for f in demos.check(recorded(tmp_path / "d", copy)).findings if f.kind == "double"]
    assert [(f.episode, f.frame, f.last) for f in found] == [(4, 0, 49), (5, 30, 44)]
    assert "is episode 1 once more" in found[0].message and "15 frames are those from frame 10 of episode 2 on" in found[1].message


def test_a_slip_in_one_episodes_task_is_found(tmp_path):
    found = only(recorded(tmp_path / "d", tasks={2: "pick pu the cup"[:5] + "up the  Cup."}))
    assert (found.kind, found.episode, found.key) == ("task", 2, "task") and "'pick up the cup' meant?" in found.message
    assert f'sinew data edit {tmp_path / "d"} --task "2:pick up the cup"' in found.advice


def test_tasks_that_differ_on_purpose_are_left_alone():
    assert all(
        is_slip(*pair) for pair in (("lfit the cube", "lift the cube"), ("open the drawr", "open the drawer"), ("Lift it", "lift it."))
    )
    for pair in (
        ("touch the red cube", "touch the blue cube"), ("put it left", "put it right"), ("cube 1 up", "cube 2 up"), ("a cap", "a cup"),
        ("lift the cube", "lift the cube"), ("open it", "close it"), ("put peg12 in", "put peg13 in"),
    ):  # fmt: skip
        assert not is_slip(*pair), pair
    assert [letters_apart(*p) for p in (("lift", "lfit"), ("cube", "cub"), ("abc", "abc"), ("", "ab"), ("kitten", "sitting"))] == [
        1, 1, 0, 2, 3,
    ]  # fmt: skip


def picture(episode: int, at: int) -> np.ndarray:
    """A gradient with a bar that moves."""
    rows, columns = np.mgrid[0:48, 0:64]
    image = np.stack([rows * 3, columns * 3, np.full((48, 64), 90)], -1).astype(np.uint8)
    image[:, (at * 3) % 56 : (at * 3) % 56 + 8] = (200, 60, 30 * episode)
    return image


@pytest.mark.parametrize(
    ("kind", "first", "last", "spoiled", "message"),
    [
        ("black", 8, 8, lambda image: image // 30, "is black in 1 of 50 frames"),
        ("overexposed", 20, 44, lambda image: np.minimum(image.astype(int) + 235, 255).astype(np.uint8), "is overexposed in 25 of 50"),
        ("one colour", 10, 40, lambda image: np.full_like(image, 120), "shows one colour in 31 of 50"),
        ("frozen", 12, 39, lambda image: picture(2, 12), "the camera is stuck"),
    ],
)
def test_a_camera_that_shows_nothing_is_found(tmp_path, kind, first, last, spoiled, message):
    root = recorded(
        tmp_path / "d", image=lambda e, i: spoiled(picture(e, i)) if e == 2 and first <= i <= last else picture(e, i), episodes=4
    )
    found = [f for f in demos.check(root).findings if f.level != "note"]
    assert [(f.kind, f.episode, f.frame, f.last) for f in found] == [(kind, 2, first, last)] and message in found[0].message


def test_nothing_is_said_of_pictures_where_there_are_none(tmp_path):
    stages: list[str] = []

    class Note(Progress):
        def start(self, stage: str, total: int, done: int = 0) -> None:
            stages.append(stage)

    demos.check(recorded(tmp_path / "d", episodes=2), progress=Note())
    assert not stages


def test_an_outcome_that_the_frames_contradict_is_found(tmp_path, monkeypatch):
    """As a relabelling leaves it that died between the frames and the line."""
    from demos import relabel

    root = recorded(tmp_path / "d")
    monkeypatch.setattr(relabel._Relabelling, "_lines", lambda self, path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        relabel.relabel(root, {1: relabel.Label(success=False)})
    monkeypatch.undo()
    found = only(root)
    assert (found.kind, found.episode) == ("outcome", 1) and "--success 1, or --failure 1" in found.advice
    relabel.relabel(root, {1: relabel.Label(success=False)})
    assert demos.check(root).ok and demos.Dataset(root).episode(1).success is False


def test_collections_of_every_task_raise_no_alarm(tmp_path):
    """Both styles of the expert, and pictures of one task."""
    from sim.tasks import TASKS
    from sinew.cli.collect import Args, collect

    for number, task in enumerate(TASKS):
        quality = ("clean", "human")[number % 2]
        cameras = {"cameras": ("front", "wrist"), "image_size": 48} if task == "lift" else {}
        episodes = 2 if cameras else 5
        collect(Args(task=task, out=tmp_path / task, episodes=episodes, quality=quality, **cameras))  # type: ignore[arg-type]
        assert demos.check(tmp_path / task).findings == (), task


def test_findings_are_json():
    from sinew.config import to_json

    found = demos.Finding("warning", "data", "jumps", "action", 1, 2, 4, "jump", "look at it")
    assert json.loads(json.dumps(to_json(found)))["last"] == 4
    assert found.place == "data, episode 1, frames 2 to 4, action"
    assert replace(found, last=2).place == "data, episode 1, frame 2, action"
    assert str(SimpleNamespace(f=found).f).endswith("; look at it")
