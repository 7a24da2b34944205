"""Progress, check, guard and preview through the command line, on episodes written here."""

import json

import numpy as np
import pytest

from demos import Writer
from sinew.cli.main import main
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

STATE = "observation.state"
LENGTH = 25


def write(root, outcomes, pictures=False, value=None):
    """Episodes in a plane: a success walks from x = 0 to 1, a failure turns away half way."""
    tensors = {STATE: TensorSpec(shape=(3,), names=("tool.x", "tool.y", "tool.z"))}
    if pictures:
        tensors["observation.images.front"] = TensorSpec(shape=(64, 64, 3), dtype="uint8")
    action = ActionSpec(kind="ee_delta", low=(-1.0,) * 3, high=(1.0,) * 3, rate_hz=10.0, names=("x", "y", "z"))
    rng = np.random.default_rng(0)
    with Writer.create(
        root, fps=10, observation_spec=ObservationSpec(tensors), action_spec=action, robot_type="plane", task="go right"
    ) as writer:
        for success in outcomes:
            x = np.linspace(0, 1, LENGTH)
            y = np.where(success, 0.0, np.maximum(0, x - 0.5) * 4) + rng.uniform(-0.1, 0.1)
            for step in range(LENGTH):
                state = np.array([x[step], y[step], 0.1 * np.sin(3 * x[step])], np.float32)
                frame = {STATE: state if value is None else np.full(3, value, np.float32), "action": np.zeros(3, np.float32)}
                if pictures:
                    picture = np.full((64, 64, 3), 60, np.uint8)
                    picture[20:40, int(50 * x[step]) : int(50 * x[step]) + 12] = (220, 60, 40)
                    frame["observation.images.front"] = picture
                writer.add_frame(frame, stamp_ns=step * 100_000_000)
            writer.save_episode(success=success)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    data = write(folder / "data", [True, True, False] * 5)
    assert main(["reward", "progress", "--data", str(data), "--out", str(folder / "r.json"), "--updates", "150"]) == 0
    return folder


def told(capsys, *arguments):
    capsys.readouterr()
    code = main([*arguments, "--json"])
    out = capsys.readouterr()
    return code, json.loads(out.out) if out.out else out.err


def test_progress_is_checked_on_its_episodes(made, capsys):
    code, result = told(capsys, "reward", "check", str(made / "r.json"), "--data", str(made / "data"))
    held = {f["name"]: f["holds"] for f in result["findings"]}
    assert (code, result["passed"]) == (0, True)
    assert held["ranking"] is held["growth"] is held["loops"] is held["failing"] is True
    assert result["episodes"] == {"successes": 10, "failures": 5}


def test_transport_and_sparse_are_checked_too(made, capsys):
    out = made / "t.json"
    assert main(["reward", "progress", "--data", str(made / "data"), "--out", str(out), "--kind", "transport", "--updates", "150"]) == 0
    code, result = told(capsys, "reward", "check", str(out), "--data", str(made / "data"))
    assert {f["name"]: f["holds"] for f in result["findings"]} == {"ranking": True, "growth": None, "failing": True}
    code, result = told(capsys, "reward", "check", "sparse", "--data", str(made / "data"))
    assert code == 0
    assert [f["name"] for f in result["findings"]] == ["dense"]


def test_preview_writes_a_page_pictures_and_films(made, tmp_path, capsys):
    data = write(tmp_path / "data", [True, False, True, False], pictures=True)
    code, result = told(
        capsys, "reward", "preview", str(made / "r.json"), "--data", str(data), "--out", str(tmp_path / "page"), "--films", "2"
    )
    page = (tmp_path / "page" / "preview.html").read_text()
    assert code == 0
    assert len(result["films"]) == 2
    assert {f.rpartition("-")[2] for f in result["films"]} == {"success.mp4", "failure.mp4"}
    assert all((tmp_path / "page" / name).stat().st_size > 1000 for name in (*result["films"], "sheet.png", "curves.png"))
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing from outside
    assert all(f["text"][:20] in page for f in result["findings"])


def test_a_dataset_without_pictures_has_a_page_all_the_same(made, tmp_path, capsys):
    code, result = told(capsys, "reward", "preview", str(made / "r.json"), "--data", str(made / "data"), "--out", str(tmp_path / "page"))
    assert (code, result["films"]) == (0, [])
    assert "sheet.png" not in (tmp_path / "page" / "preview.html").read_text()


def test_a_guarded_reward_is_built_and_played(made, capsys):
    guarded = made / "g.json"
    assert main(["reward", "guard", str(made / "r.json"), "--data", str(made / "data"), "--out", str(guarded)]) == 0
    code, result = told(capsys, "reward", "check", str(guarded), "--data", str(made / "data"))
    assert result["kind"] == "guarded"
    assert code in (0, 2)  # what it takes off is no potential
    assert main(["reward", "guard", str(guarded), "--data", str(made / "data"), "--out", str(made / "h.json")]) == 2


def test_a_reward_that_pays_failures_does_not_pass(tmp_path, made, capsys):
    """The same reward on data in which outcomes are told the other way round."""
    data = write(tmp_path / "data", [True, False] * 5)
    swapped = write(tmp_path / "swapped", [True] * 5)
    from demos import Dataset
    from rewards.inspection import Episode, inspect
    from sinew.cli.reward_recorded import builder, episodes

    given = Dataset(data)
    wrong = [Episode(e.index, e.frames, not e.success) for e in episodes(given, 10)]
    found = inspect(given, wrong, builder(str(made / "r.json"), given, print), [])
    assert {"ranking", "growth"} <= {f.name for f in found.problems}
    _, result = told(capsys, "reward", "check", str(made / "r.json"), "--data", str(swapped))
    assert next(f["holds"] for f in result["findings"] if f["name"] == "ranking") is None  # no failure to tell from


def test_bad_input_is_told_in_one_line(made, tmp_path, capsys):
    failures = write(tmp_path / "failures", [False] * 4)
    still = write(tmp_path / "still", [True] * 4, value=0.5)
    other = tmp_path / "o.json"
    cases = [
        (["progress", "--data", str(failures), "--out", str(other)], "0 successes among 4"),
        (["progress", "--data", str(still), "--out", str(other)], "tells nothing apart"),
        (["progress", "--data", str(made / "data"), "--out", str(tmp_path / "o")], "ends in .json"),
        (["progress", "--data", str(made / "data"), "--out", str(other), "--keys", "nothing"], "'nothing'"),
        (["check", str(made / "r.json"), "--data", str(failures)], "none of the 4 episodes is a success"),
        (["check", str(tmp_path / "none.json"), "--data", str(made / "data")], "there is none"),
        (["check", "shaped", "--data", str(made / "data")], "tells of none"),
        (["preview", str(made / "r.json"), "--data", str(tmp_path / "nowhere")], "nowhere"),
        (["guard", str(made / "r.json"), "--data", str(failures), "--out", str(made / "x.json")], "no success"),
        (["guard", str(made / "r.json"), "--data", str(made / "data"), "--out", str(tmp_path / "x.json")], "in the folder of"),
    ]
    for arguments, words in cases:
        capsys.readouterr()
        assert main(["reward", *arguments]) == 2, arguments
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sinew:")]
        assert len(error) == 1, arguments
        assert words in error[0], error
    assert not other.exists()
