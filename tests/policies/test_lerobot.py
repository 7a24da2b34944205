"""What the LeRobot adapter does before LeRobot is needed; the rest is in tests/conformance/test_policies.py."""

from __future__ import annotations

import sys

import pytest

from policies.lerobot import load
from policies.lerobot_files import PROCESSORS, check_files
from sinew.errors import DataError, MissingDependency
from sinew.specs import ActionSpec, ObservationSpec

ACTION = ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=10.0, names=("x",))


def test_without_lerobot_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(MissingDependency, match=r"pip install 'sinew\[lerobot\]'"):
        load(str(tmp_path), ObservationSpec(), ACTION)


def test_files_that_could_run_code_are_not_let_through(tmp_path):
    for name in ("config.json", "model.safetensors", *PROCESSORS):
        (tmp_path / name).write_text("{}")
    check_files(tmp_path, "it")
    (tmp_path / PROCESSORS[0]).write_text('{"steps": [{"registry_name": "normalizer_processor"}, {"class": "lerobot.processor.x.Y"}]}')
    check_files(tmp_path, "it")
    (tmp_path / PROCESSORS[1]).write_text('{"steps": [{"class": "os.system", "config": {"command": "true"}}]}')
    with pytest.raises(DataError, match=r"it/policy_postprocessor\.json names the class 'os\.system', which is not LeRobot's"):
        check_files(tmp_path, "it")
    (tmp_path / "weights.pkl").write_bytes(b"")
    with pytest.raises(DataError, match=r"it holds weights\.pkl: pickles run code and are never read"):
        check_files(tmp_path, "it")
    (tmp_path / "weights.pkl").rename(tmp_path / "optimizer.PT")
    with pytest.raises(DataError, match=r"it holds optimizer\.PT: pickles run code"):
        check_files(tmp_path, "it")


@pytest.mark.parametrize("text", ["[]", '{"steps": null}', '{"steps": ["x"]}'])
def test_processors_that_are_none_are_told(text, tmp_path):
    for name in ("config.json", "model.safetensors", *PROCESSORS):
        (tmp_path / name).write_text("{}")
    (tmp_path / PROCESSORS[1]).write_text(text)
    with pytest.raises(DataError, match=r"it/policy_postprocessor\.json does not describe a processor"):
        check_files(tmp_path, "it")
