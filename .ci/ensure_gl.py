"""Install, or name, the system package that lets MuJoCo draw without a screen."""

import os
import shutil
import subprocess

from sim.gl import egl_works, osmesa_works


def install(package: str, without: str) -> None:
    """As root on Debian or Ubuntu install a package; elsewhere print how, and what is missing without it."""
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", package]
    if shutil.which("apt-get") and os.geteuid() == 0:
        quiet = {"check": False, "stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update", "-q"], **quiet)
        if subprocess.run(command, **quiet).returncode == 0:
            return
    print(f"{without} To have them: sudo {' '.join(command)}")


def main() -> None:
    """Where neither EGL nor OSMesa works, get OSMesa."""
    if not egl_works() and not osmesa_works():
        install("libosmesa6", "No OpenGL without a screen: videos and camera images are left out.")


if __name__ == "__main__":
    main()
