"""What the doctor tries: small programs run in processes of their own, and questions to the system."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from sinew.rundir import processor_name

TIMEOUT_S = 60.0
"""A probe that takes longer is said to hang."""

CORE_PACKAGES = (
    "torch", "numpy", "mujoco", "gymnasium", "pyarrow", "av", "opencv-python-headless", "scipy", "safetensors", "diffusers", "tyro", "rich",
    "pyyaml", "cyclonedds", "rosbags", "mcap",
)  # fmt: skip
EXTRAS = {
    "gpu": ("mujoco-warp", "batched physics on a GPU"),
    "vla": ("transformers", "vision-language-action policies"),
    "lerobot": ("lerobot", "LeRobot's own policies and datasets"),
    "distributed": ("ray", "collection and learning on several machines"),
    "console": ("fastapi", "the browser console"),
    "teleop": ("pygame", "gamepad and SpaceMouse teleoperation"),
    "dev": ("pytest", "the checks that CI runs"),
}
"""Extra → (package that shows it is there, what it is for)."""
FIFO_FIX = 'echo "$USER - rtprio 60" | sudo tee /etc/security/limits.d/sinew.conf  # then log in again'
LOOPBACK_DDS = "export CYCLONEDDS_URI='<General><Interfaces><NetworkInterface name=\"lo\"/></Interfaces></General>'"

IMPORTS = """
import importlib, json
broken = {}
for name in ("numpy", "torch", "mujoco", "gymnasium", "pyarrow", "av", "cv2", "scipy", "safetensors", "tyro", "rich", "rosbags", "mcap"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name != name:
            broken[name] = str(e)
    except Exception as e:
        broken[name] = f"{type(e).__name__}: {e}".splitlines()[0]
cuda = None
try:
    import torch
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
except Exception:
    pass
print(json.dumps({"text": "", "broken": broken, "cuda": cuda}))
"""
PHYSICS = """
import json, mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><body pos="0 0 1"><freejoint/><geom size=".1"/></body></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_step(model, data, 100)
fallen, expected = 1 - data.qpos[2], 9.81 / 2 * (100 * model.opt.timestep) ** 2
assert abs(fallen - expected) < 0.05 * expected, f"a body fell {fallen:.4f} m, not {expected:.4f} m"
print(json.dumps({"text": f"MuJoCo {mujoco.__version__} steps a world"}))
"""
GL = """
import json, mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 3"/><geom size=".3" rgba="1 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
renderer.update_scene(data)
image = renderer.render()
assert image.shape == (64, 64, 3) and image[..., 0].max() > 50, "the frame is black"
renderer.close()
print(json.dumps({"text": "a frame was rendered"}))
"""
VIDEO = """
import io, json, av, numpy as np
names = [c for c in ("libx264", "libsvtav1") if c in av.codecs_available]
assert names, "neither libx264 nor libsvtav1 is in this build of PyAV"
memory = io.BytesIO()
with av.open(memory, "w", format="mp4") as out:
    stream = out.add_stream(names[0], rate=20)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    for i in range(5):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 * i, np.uint8), format="rgb24")
        out.mux(stream.encode(frame))
    out.mux(stream.encode())
memory.seek(0)
with av.open(memory) as back:
    count = sum(1 for _ in back.decode(video=0))
assert count == 5, f"5 frames were encoded, {count} came back"
print(json.dumps({"text": f"{', '.join(names)}: frames encoded and read back"}))
"""
DDS = """
import json, os, time
from dataclasses import dataclass
from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
@dataclass
class Ping(IdlStruct, typename="sinew_doctor::Ping"):
    value: int
participant = DomainParticipant(int(os.environ.get("ROS_DOMAIN_ID") or 0))
topic = Topic(participant, "sinew_doctor_ping", Ping)
qos = Qos(Policy.Reliability.Reliable(1_000_000_000), Policy.Durability.TransientLocal)
reader, writer = DataReader(participant, topic, qos), DataWriter(participant, topic, qos)
writer.write(Ping(42))
end = time.monotonic() + 5
while time.monotonic() < end:
    if any(sample.value == 42 for sample in reader.take(10)):
        break
    time.sleep(0.02)
else:
    raise TimeoutError("a participant was made but did not hear its own message within 5 s")
print(json.dumps({"text": "a participant writes and hears itself"}))
"""


@dataclass(frozen=True)
class Answer:
    """What a probe said."""

    ok: bool
    text: str
    """What works, or in one line why not."""
    data: dict[str, Any] = field(default_factory=dict)


class Probes:
    """Programs started side by side; `collect` waits for all.

    Args:
        programs: Python source by name; each prints one JSON object with "text" and exits 0, or fails. A program called
            "egl" or "osmesa" runs with MUJOCO_GL set to that name.
    """

    def __init__(self, **programs: str) -> None:
        self._running = {name: self._start(name, source) for name, source in programs.items()}

    def collect(self) -> dict[str, Answer]:
        """One answer for each program."""
        return {name: self._answer(process) for name, process in self._running.items()}

    @staticmethod
    def _start(name: str, source: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if name in ("egl", "osmesa"):
            environment["MUJOCO_GL"] = environment["PYOPENGL_PLATFORM"] = name
        return subprocess.Popen([sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> Answer:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Answer(False, f"no answer within {TIMEOUT_S:.0f} s")
        if process.returncode != 0:
            return Answer(False, last_line(err) or f"ended with {process.returncode}")
        try:
            data = json.loads(out.strip().splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            return Answer(False, f"said {out!r:.100}")
        return Answer(True, data["text"], data)


def last_line(text: str) -> str:
    """The last line of a traceback that names an error, without its address."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [
        line for line in lines if ": " in line and line.split(":")[0].replace(".", "").isidentifier() and "Error" in line.split(":")[0]
    ]
    return (named or lines or [""])[-1][:200]


def python_version() -> tuple[int, int, int]:
    """Version of this interpreter."""
    return sys.version_info[:3]


def executable() -> str:
    """Path of this interpreter."""
    return sys.executable


def version(package: str) -> str | None:
    """Installed version of a package, None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def wheel_exists(package: str) -> bool:
    """False for cyclonedds on Linux machines other than x86_64, for which no wheel is published."""
    return package != "cyclonedds" or platform.system() != "Linux" or platform.machine() == "x86_64"


def pip_install(*packages: str) -> str:
    """Command that installs packages into this interpreter."""
    return f"{shlex.quote(sys.executable)} -m pip install {' '.join(shlex.quote(p) for p in packages)}"


def extra_install(extra: str) -> str:
    """Command that installs an extra: of the checkout if sinew runs from one, else of the package."""
    root = checkout()
    return pip_install("-e", f"{root}[{extra}]") if root else pip_install(f"sinew[{extra}]")


def reinstall() -> str:
    """Command that installs all core packages again."""
    root = checkout()
    return pip_install("--force-reinstall", "-e", str(root)) if root else pip_install("--force-reinstall", "sinew")


def import_fix(name: str, message: str) -> str:
    """Command that mends a package that is installed and cannot be imported."""
    if "libGL" in message or "libgthread" in message or "libglib" in message:
        return apt_install("libgl1", "libglib2.0-0")
    return pip_install("--force-reinstall", {"cv2": "opencv-python-headless"}.get(name, name))


def checkout() -> Path | None:
    """Root of the source tree that sinew runs from; None when installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "setup.cfg").is_file() else None


def apt_install(*packages: str) -> str:
    """Command that installs Debian packages, with sudo where it is needed."""
    return f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install -y {' '.join(packages)}"


def fifo_allowed() -> tuple[bool, str]:
    """Whether SCHED_FIFO 50 is granted, tried in a process of its own; else why not."""
    source = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))"
    if not hasattr(os, "sched_setscheduler"):
        return False, "this system has no SCHED_FIFO"
    done = subprocess.run([sys.executable, "-S", "-c", source], capture_output=True, text=True)
    return done.returncode == 0, "SCHED_FIFO not permitted"


def free_gb() -> float:
    """Free space of the current folder's disk, in GB (1e9 bytes)."""
    return shutil.disk_usage(Path.cwd()).free / 1e9


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def omp_threads() -> str | None:
    """OMP_NUM_THREADS as the user set it."""
    return os.environ.get("OMP_NUM_THREADS")


def processor() -> str:
    """Name of the processor."""
    return processor_name()


def environment(name: str) -> str | None:
    """An environment variable, None if unset or empty."""
    return os.environ.get(name) or None
