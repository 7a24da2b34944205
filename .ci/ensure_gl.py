"""Install, or name, the system package that lets MuJoCo draw without a screen."""

import os
import shutil
import subprocess

from sim.gl import egl_works, osmesa_works

INSTALL = ["apt-get", "install", "-y", "-q", "libosmesa6"]


def main() -> None:
    """Where neither EGL nor OSMesa works: as root on Debian or Ubuntu install OSMesa, elsewhere print how."""
    if egl_works() or osmesa_works():
        return
    if shutil.which("apt-get") and os.geteuid() == 0:
        quiet = {"check": False, "stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update", "-q"], **quiet)
        if subprocess.run(INSTALL, **quiet).returncode == 0:
            return
    print(f"No OpenGL without a screen: videos and camera images are left out. To have them: sudo {' '.join(INSTALL)}")


if __name__ == "__main__":
    main()
