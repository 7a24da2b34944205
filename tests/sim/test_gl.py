"""The choice of the OpenGL library, by processes of their own: what one loads, the next must not inherit."""

import os
import subprocess
import sys

import pytest

from sim import gl
from sinew.errors import InputError, MissingDependency


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    gl.backend.cache_clear()
    yield
    gl.backend.cache_clear()


def test_egl_first_then_osmesa_then_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    works = {"egl": True, "osmesa": True}
    monkeypatch.setattr(gl, "egl_works", lambda: works["egl"])
    monkeypatch.setattr(gl, "osmesa_works", lambda: works["osmesa"])
    assert gl.backend() == "egl"
    gl.backend.cache_clear()
    works["egl"] = False
    assert gl.backend() == "osmesa"
    gl.backend.cache_clear()
    works["osmesa"] = False
    with pytest.raises(MissingDependency, match=r"apt-get install -y libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri.*libosmesa6"):
        gl.backend()


def test_the_users_choice_is_kept_and_nonsense_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert gl.backend() == "osmesa"
    gl.backend.cache_clear()
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(InputError, match="MUJOCO_GL is 'disable'"):
        gl.backend()


DRAW = "import sim, sys; r = sim.RobotSim('lift'); print(r.image('front', 48, 64).std() > 10)"


def draw(**environment: str) -> subprocess.CompletedProcess[str]:
    """A picture in a process of its own, after mujoco was imported without MUJOCO_GL."""
    clean = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run([sys.executable, "-c", DRAW], env={**clean, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize("library", ["", "egl", "osmesa"])
def test_a_picture_is_drawn_and_the_process_ends_quietly(library: str) -> None:
    available = {"egl": gl.egl_works(), "osmesa": gl.osmesa_works(), "": gl.egl_works() or gl.osmesa_works()}
    if not available[library]:
        pytest.skip(f"{library or 'no OpenGL library'} is not installed here")
    done = draw(**({"MUJOCO_GL": library} if library else {}))
    assert done.returncode == 0 and done.stdout.strip() == "True" and done.stderr == "", done.stderr


def test_without_a_library_physics_works_and_cameras_say_what_to_install() -> None:
    code = (
        "import sim, sim.gl as gl; gl.egl_works = gl.osmesa_works = lambda: False\n"
        "env = sim.make_vec('lift', 2); env.reset(0)\n"
        "try:\n    sim.make_vec('lift', 1, cameras=('front',))\nexcept Exception as e:\n    print(type(e).__name__, e.exit_code, str(e))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("MissingDependency 3 cameras need OpenGL") and "libosmesa6" in done.stdout, done.stderr
