"""Build the wheel, install it into a clean venv, and use it from a folder that is not the repository."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sinew", "policies", "sim", "robot_bridge", "rl", "rewards", "calibration", "demos")


def sh(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command, show what it printed if it failed, return its standard output."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Fail loudly on a module, data file or entry point that the wheel left out."""
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        # From a copy: setuptools leaves build/ in the tree it builds, and takes what an earlier build left there.
        shutil.copytree(ROOT, tmp / "source", ignore=shutil.ignore_patterns(".git", ".venv*", "build", "runs", "*.egg-info", "__pycache__"))
        sh(sys.executable, "-m", "build", "--wheel", "--outdir", tmp / "dist", tmp / "source", cwd=tmp)
        (wheel,) = (tmp / "dist").glob("*.whl")
        venv.create(tmp / "venv", with_pip=True)
        python = tmp / "venv" / "bin" / "python"
        sh(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", ROOT / "constraints.txt", wheel, cwd=tmp)
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        names = ", ".join(PACKAGES)
        sh(python, "-c", f"import {names}; assert all('site-packages' in m.__file__ for m in ({names}))", cwd=tmp, env=env)
        page = "from importlib.resources import files; assert (files('robot_bridge.teleop.browser') / 'page' / 'main.js').is_file()"
        sh(python, "-c", page, cwd=tmp, env=env)
        sinew = tmp / "venv" / "bin" / "sinew"
        sh(sinew, "doctor", "--json", cwd=tmp, env=env)  # fails where the core does not work
        tasks = json.loads(sh(sinew, "tasks", "--json", cwd=tmp, env=env))
        sh(sinew, "collect", "--task", "lift", "--episodes", "4", "--out", tmp / "data", "--json", cwd=tmp, env=env)
        sh(sinew, "train", "--data", tmp / "data", "--steps", "20", "--out", tmp / "run", "--json", cwd=tmp, env=env)
        result = json.loads(sh(sinew, "eval", tmp / "run", "--episodes", "4", "--json", cwd=tmp, env=env))
        make = "import gymnasium, sim; gymnasium.make('sinew/Lift-v0').reset(seed=0)"
        sh(python, "-c", make, cwd=tmp, env=env)
        print(f"{wheel.name}: {len(tasks['tasks'])} tasks, evaluated {result['n']} episodes")


if __name__ == "__main__":
    main()
