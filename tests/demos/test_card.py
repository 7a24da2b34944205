"""Cards: a header that the hub reads, figures that are those of the dataset, pictures that are pictures, and words that are no markup."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

import demos
from demos import card
from demos.video import decode_picture
from sinew.errors import InputError
from sinew.stats import wilson


def test_a_card_tells_what_the_dataset_holds(helpers, tmp_path):
    root = helpers.record(tmp_path / "data", [9, 6, 7], cameras=2)
    told = card.write(root, title="Push it", license="cc-by-4.0")
    text = (root / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "cc-by-4.0" and header["task_categories"] == ["robotics"] and header["size_categories"] == ["n<1K"]
    assert "LeRobot" in header["tags"] and header["configs"] == [{"config_name": "default", "data_files": "data/*/*.parquet"}]
    low, high = wilson(2, 3)
    assert f"2/3 ({100 * low:.0f} to {100 * high:.0f} %)" in text and "| push the block | 3 |" in text
    assert told["episodes"] == 3 and told["frames"] == 22 and "0.0 minutes" in text and "none" in text
    assert told["cadence"] == {"median_ms": 50.0, "p99_ms": 50.0, "longest_ms": 50.0, "late": 0, "periods": 19}
    sheet, bars = (decode_picture((root / name).read_bytes()) for name in (card.SHEET, card.HISTOGRAMS))
    assert sheet.shape[0] > 2 * 132 and sheet.shape[1] > 6 * 132
    first = demos.Dataset(root)[0]["observation.images.cam0"]
    assert abs(sheet[48 : 48 + 132, 6 : 6 + 198].mean() - first.mean()) < 12  # the first frame stands where it belongs
    assert (bars == (64, 118, 190)).all(-1).any()
    assert not demos.check(root).findings and card.write(root)["frames"] == 22  # ours is written over


def test_somebody_elses_card_stays(helpers, tmp_path):
    root = helpers.record(tmp_path / "data", [3])
    (root / "README.md").write_text("# mine")
    with pytest.raises(InputError, match="was not written by sinew and stays"):
        card.write(root)
    assert (root / "README.md").read_text() == "# mine"
    card.write(root, replace=True)
    assert card.OURS in (root / "README.md").read_text() and not (root / card.SHEET).exists()


def test_late_frames_and_words_of_others(tmp_path, helpers):
    observation, action = helpers.specs()
    task = "lift | <script>alert(1)</script>\n# no `heading` [x](javascript:y)"
    with demos.Writer.create(tmp_path / "d", fps=20, observation_spec=observation, action_spec=action, task=task) as writer:
        for at in range(10):
            writer.add_frame(helpers.frame(0, at), stamp_ns=at * 50_000_000 + (at > 4) * 100_000_000)
        writer.save_episode()
    told = card.write(tmp_path / "d", title="x")
    text = (tmp_path / "d/README.md").read_text()
    assert told["cadence"]["late"] == 1 and told["cadence"]["longest_ms"] == 150 and "1 of 9 periods" in text
    assert "<script>" not in text and "\n# no" not in text and "](javascript" not in text.replace("\\[x](javascript", "")
    assert "not told" in text


def test_a_value_that_never_changes_has_a_histogram():
    picture = decode_picture(card.card_pictures.histograms({"action": (["a"], np.ones((5, 1)))}))
    assert (picture == (64, 118, 190)).all(-1).any()
