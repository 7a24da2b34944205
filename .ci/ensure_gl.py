"""Install, or name, the system package that lets MuJoCo draw without a screen."""

import ctypes.util
import os
import shutil
import subprocess

COMMAND = ["apt-get", "install", "-y", "-q", "libosmesa6"]


def main() -> None:
    """Look for EGL and OSMesa; as root on Debian or Ubuntu install OSMesa, elsewhere print how."""
    if ctypes.util.find_library("OSMesa") or ctypes.util.find_library("EGL"):
        return
    apt = shutil.which("apt-get")
    if apt and os.geteuid() == 0:
        subprocess.run([apt, "update", "-q"], check=False, stdout=subprocess.DEVNULL)
        if subprocess.run(COMMAND, check=False, stdout=subprocess.DEVNULL).returncode == 0:
            return
    print(f"No OpenGL without a screen: videos and camera images are left out. To have them: sudo {' '.join(COMMAND)}")


if __name__ == "__main__":
    main()
