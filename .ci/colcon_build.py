"""Build the package as ROS 2 does, with colcon, and look at what it installed: index, launch files, executables, environment."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NODES = ("calibrate", "collect", "deploy", "doctor", "record", "robot", "serve")
PACKAGES = ("sinew", "policies", "sim", "robot_bridge", "rl", "rewards", "calibration", "demos")
NOT_SOURCE = (".git", ".venv*", "build", "install", "log", "runs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")


def sh(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command, show what it printed if it failed, return its standard output."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def check(holds: bool, what: str) -> None:
    """End with what is wrong."""
    if not holds:
        sys.exit(f"colcon build: {what}")


def look_at(prefix: Path) -> None:
    """The files that ros2 pkg, ros2 launch and ros2 run look for."""
    check((prefix / "share/ament_index/resource_index/packages/sinew").is_file(), "the package is not in the ament index")
    told = ElementTree.parse(prefix / "share/sinew/package.xml").getroot()
    check(told.findtext("name") == "sinew" and told.findtext("export/build_type") == "ament_python", "package.xml is not ours")
    launch = {p.name for p in (ROOT / "launch").glob("*.launch.py")}
    found = {p.name for p in (prefix / "share/sinew/launch").iterdir()}
    check(found == launch, f"share/sinew/launch holds {sorted(found)}, expected {sorted(launch)}")
    executables = {p.name for p in (prefix / "lib/sinew").iterdir() if os.access(p, os.X_OK)}
    check(executables == {"sinew", *NODES}, f"lib/sinew holds the executables {sorted(executables)}, expected sinew and {NODES}")
    (site,) = prefix.glob("lib/python3*/site-packages")
    missing = [name for name in PACKAGES if not (site / name / "__init__.py").is_file()]
    check(not missing, f"the packages {missing} were not installed")
    data = ("sinew/py.typed", "robot_bridge/teleop/browser/page/main.js")
    check(all((site / name).is_file() for name in data), "data files were not installed")


def use(install: Path, python: Path, tmp: Path) -> None:
    """The environment that setup.bash makes, and the executables in it."""
    code = f". {install}/setup.bash && env"
    env = dict(line.split("=", 1) for line in sh("bash", "-c", code, cwd=tmp).splitlines() if "=" in line)
    check(str(install / "sinew") in env.get("AMENT_PREFIX_PATH", ""), "setup.bash does not put the package on AMENT_PREFIX_PATH")
    where = sh(python, "-c", "import sinew; print(sinew.__file__)", cwd=tmp, env=env).strip()
    check(where.startswith(str(install)), f"setup.bash leads Python to {where}")
    for node in NODES:
        said = sh(python, install / "sinew/lib/sinew" / node, "--help", cwd=tmp, env=env)
        check("usage: sinew" in said, f"ros2 run sinew {node} --help says {said[:80]!r}")
    told = json.loads(sh(python, install / "sinew/lib/sinew/sinew", "tasks", "--json", cwd=tmp, env=env))
    check(bool(told["tasks"]), "the installed command knows no tasks")


def main() -> None:
    """Fail loudly on anything that ROS 2 would not find."""
    colcon, python = (Path(p).absolute() for p in sys.argv[1:3])  # a venv's python is a link that must not be followed
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        shutil.copytree(ROOT, tmp / "src/sinew", ignore=shutil.ignore_patterns(*NOT_SOURCE))
        sh(colcon, "--log-base", tmp / "log", "build", "--base-paths", tmp / "src", cwd=tmp, env={**os.environ, "COLCON_DEFAULTS_FILE": ""})
        look_at(tmp / "install/sinew")
        use(tmp / "install", python, tmp)
    print(f"colcon build: {len(NODES) + 1} executables and the launch files are where ROS 2 looks for them")


if __name__ == "__main__":
    main()
