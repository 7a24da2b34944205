"""The doctor says what works, and for what does not, the exact command and exit code 3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sinew.cli import doctor
from sinew.cli import doctor_probes as probes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def diagnosis() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sinew", "doctor", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=180)


def check_of(result: dict, name: str) -> dict:
    return next(c for c in result["checks"] if c["name"] == name)


def test_one_json_object_and_an_exit_code_that_agrees(diagnosis: subprocess.CompletedProcess[str]) -> None:
    result = json.loads(diagnosis.stdout)
    assert diagnosis.returncode == (0 if result["core_ok"] else 3), diagnosis.stderr
    for c in result["checks"]:
        assert c["status"] in ("ok", "missing", "limited") and c["detail"]
        assert c["status"] == "ok" or c["fix"] or not c["core"], c


def test_everything_that_was_asked_for_is_tried(diagnosis: subprocess.CompletedProcess[str]) -> None:
    names = {c["name"] for c in json.loads(diagnosis.stdout)["checks"]}
    assert {"python", *probes.CORE_PACKAGES, *probes.EXTRAS} <= names
    assert {"rendering", "physics", "video", "dds", "realtime", "disk", "cpu", "gpu"} <= names


def test_versions_are_those_of_this_environment(diagnosis: subprocess.CompletedProcess[str]) -> None:
    from importlib import metadata

    result = json.loads(diagnosis.stdout)
    assert check_of(result, "numpy")["detail"] == metadata.version("numpy")
    assert check_of(result, "physics")["status"] == "ok"


def test_a_package_that_cannot_be_imported_is_a_missing_core_piece(tmp_path: Path) -> None:
    (tmp_path / "mujoco.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "sinew", "doctor"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**environment, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "a core piece is missing" in done.stdout and "apt-get install -y libgl1 libglib2.0-0" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_probes_report_crashes_hangs_and_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "TIMEOUT_S", 1.5)
    answers = probes.Probes(
        good='print(\'{"text": "fine"}\')',
        raises="raise ValueError('broken in two')",
        dies="import os; os.abort()",
        hangs="import time; time.sleep(60)",
        nonsense="print('hello')",
    ).collect()
    assert answers["good"] == probes.Answer(True, "fine", {"text": "fine"})
    assert answers["raises"].text == "ValueError: broken in two"
    assert not answers["dies"].ok and answers["dies"].text
    assert "no answer within" in answers["hangs"].text
    assert "hello" in answers["nonsense"].text and not answers["nonsense"].ok


def test_rendering_falls_back_and_names_the_packages() -> None:
    no, yes = probes.Answer(False, "ImportError: no libEGL"), probes.Answer(True, "a frame was rendered")
    assert doctor.gl({"egl": yes, "osmesa": no}).detail.startswith("egl")
    assert doctor.gl({"egl": no, "osmesa": yes}).detail.startswith("osmesa")
    missing = doctor.gl({"egl": no, "osmesa": no})
    assert missing.status == "missing" and not missing.core
    assert missing.fix.endswith("apt-get install -y libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libosmesa6")
    assert "no libEGL" in missing.detail


def test_a_missing_package_comes_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "version", lambda package: None if package in ("torch", "cyclonedds") else "1.0")
    found = {c.name: c for c in doctor.packages()}
    assert found["torch"].status == "missing" and found["torch"].fix == f"{sys.executable} -m pip install torch"
    assert found["numpy"].status == "ok" and not found["numpy"].fix
    result = {"core_ok": False}
    assert doctor.exit_code(result) == 3 and doctor.exit_code({"core_ok": True}) == 0


def test_no_cyclonedds_on_arm_is_a_limit_not_a_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(probes, "version", lambda package: None if package == "cyclonedds" else "1.0")
    dds = {c.name: c for c in doctor.packages()}["cyclonedds"]
    assert dds.status == "limited" and not dds.core


def test_extras_of_a_checkout_and_of_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "checkout", lambda: None)
    assert probes.extra_install("vla") == f"{sys.executable} -m pip install 'sinew[vla]'"
    monkeypatch.setattr(probes, "checkout", lambda: Path("/src/my sinew"))
    assert probes.extra_install("vla") == f"{sys.executable} -m pip install -e '/src/my sinew[vla]'"


def test_core_packages_are_those_of_the_metadata() -> None:
    """What the doctor looks for is what the package asks pip for."""
    import configparser

    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    asked = {line.split(";")[0].strip() for line in parser["options"]["install_requires"].splitlines() if line.strip()}
    names = {next(part for part in [line.split(">")[0].split("=")[0].split("<")[0].strip()] if part) for line in asked} - {"setuptools"}
    assert set(probes.CORE_PACKAGES) == names
    extras = set(parser["options.extras_require"])
    assert set(probes.EXTRAS) <= extras
