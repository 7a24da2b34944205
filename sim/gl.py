"""Which OpenGL library draws the cameras: EGL, or else OSMesa, found out without spoiling the other.

MuJoCo's own switch, MUJOCO_GL, must be set before mujoco is imported and raises there where the library is broken, which
would take the physics down with the pictures. So the libraries are probed through ctypes when the first picture is wanted.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import weakref
from functools import lru_cache
from typing import Any

from sinew.errors import InputError, MissingDependency

_live: weakref.WeakSet[Any] = weakref.WeakSet()
_EGL_PLATFORM_DEVICE = 0x313F
_HINT = (
    "cameras need OpenGL and none works here: install EGL with `apt-get install -y libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri`, "
    "or OSMesa with `apt-get install -y libosmesa6`; without cameras everything else works"
)


def _library(*names: str) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def egl_works() -> bool:
    """Whether some EGL device can be initialised, which is what MuJoCo asks of it."""
    egl = _library("libEGL.so.1")
    if egl is None or _library("libOpenGL.so.0", "libGL.so.1") is None:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    query, display = egl.eglGetProcAddress(b"eglQueryDevicesEXT"), egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query or not display:
        return False
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query)
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(display)
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int()
    if not query_devices(16, devices, ctypes.byref(count)):
        return False
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    for device in devices[: count.value]:
        shown = get_display(_EGL_PLATFORM_DEVICE, device, None)
        if shown and egl.eglInitialize(shown, None, None):
            return True
    return False


def osmesa_works() -> bool:
    """Whether the OSMesa library can be loaded."""
    return _library("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so") is not None


@lru_cache(maxsize=1)
def backend() -> str:
    """Name of the library, "egl", "osmesa" or "glfw": what MUJOCO_GL says, else the first that works.

    Raises:
        InputError: MUJOCO_GL holds an unknown name or switches rendering off.
        MissingDependency: none works; names the packages to install.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted in ("egl", "osmesa", "glfw"):
        return wanted
    if wanted:
        raise InputError(f"MUJOCO_GL is {wanted!r}, so no camera can be drawn; unset it, or set it to egl, osmesa or glfw")
    if egl_works():
        return "egl"
    if osmesa_works():
        return "osmesa"
    raise MissingDependency(_HINT)


def make_context(width: int, height: int) -> Any:
    """An off-screen OpenGL context of MuJoCo's kind, whatever MUJOCO_GL was when mujoco was imported.

    Raises:
        MissingDependency: the chosen library fails after all.
    """
    chosen = backend()
    try:
        if chosen == "egl":
            from mujoco.egl import GLContext
        elif chosen == "osmesa":
            os.environ.setdefault("PYOPENGL_PLATFORM", "osmesa")
            from mujoco.osmesa import GLContext
        else:
            from mujoco.glfw import GLContext
        context = GLContext(width, height)
    except (ImportError, AttributeError, RuntimeError, OSError) as e:
        raise MissingDependency(f"{_HINT} ({chosen}: {str(e).splitlines()[0] if str(e) else type(e).__name__})") from None
    if not _live:
        # Runs before MuJoCo's own clean-up, which ends the display that the contexts need to be freed.
        atexit.register(_free_all)
    _live.add(context)
    return context


def release() -> None:
    """Let go of this thread's current context, so that another thread may draw with it; EGL allows one thread at a time."""
    if backend() == "egl":
        from OpenGL import EGL

        EGL.eglReleaseThread()
    elif backend() == "glfw":
        import glfw

        glfw.make_context_current(None)  # type: ignore[arg-type]


def _free_all() -> None:
    for context in list(_live):
        context.free()
