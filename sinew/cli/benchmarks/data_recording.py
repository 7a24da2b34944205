"""The recorder: minutes of two cameras and fast joints, recorders that are killed, and the repair of an hour.

The rig of `recording_rig` records in a process of its own, through the control loop, the gate and the encoders that any robot has.
The hour is made of two seconds of encoded pictures, over and over: repairing reads, checks and moves packets, whatever they show.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks.recording_rig import MADE, NUMBER, Rig, wrong_pictures

PEER = "not measured: lerobot keeps no native rates, and a killed session of it cannot be loaded"
KILLS, KILLED_CAMERAS = 20, 3
HOUR_S, REPAIR_S = 3600.0, 60.0
LATENESS_MS = 2.0


def rows(quick: bool, minutes: float | None = None) -> list[Row]:
    """Measure.

    Args:
        quick: seconds instead of minutes and of an hour, and one kill instead of twenty.
        minutes: of recording; 10, or a tenth of one, if left out.
    """
    minutes = minutes or (0.1 if quick else 10.0)
    with tempfile.TemporaryDirectory(prefix="sinew-bench-") as folder:
        found = cadence_rows(Path(folder) / "long", minutes)
        found += kill_rows(Path(folder), 1 if quick else KILLS)
        return found + repair_rows(Path(folder), 20.0 if quick else HOUR_S)


# ---------------------------------------------------------------- minutes of recording


def cadence_rows(root: Path, minutes: float) -> list[Row]:
    """Two cameras 640x480 at 30 fps and joints at 200 Hz."""
    episode_s = min(60.0, 60 * minutes)
    rig = Rig(out=str(root), episode_s=episode_s, episodes=max(1, round(60 * minutes / episode_s)))
    told = _told(rig)
    wanted = round(rig.episode_s * rig.camera_hz) * rig.episodes
    accounts, loop = told["accounts"], told["loop"]
    frames = sum(a["frames"] for a in accounts)
    lost = wanted - frames + sum(sum(a["dropped"].values()) + sum(a["skipped"].values()) for a in accounts)
    messages = sum(s["lost"] or 0 for a in accounts for s in a["streams"].values())
    passed = sum(s.get("passed_over", 0) for a in accounts for s in a["streams"].values())
    wrong, seen = wrong_pictures(root, rig)
    lateness = loop["lateness_us"]["p99"] / 1e3
    fifo = loop["scheduler"].startswith("SCHED_FIFO")
    label = f"{rig.cameras}x{rig.height}x{rig.width} at {rig.camera_hz:g} fps, joints at {rig.joints_hz:g} Hz, {minutes:g} min"
    detail = {"loop": loop, "policy": told["policy"], "ended": told["ended"], "load": os.getloadavg()[1]}
    down: dict[str, Any] = {"peer": PEER, "higher_is_better": False}
    return [
        Row(name=f"frames lost, {label}", unit="frames", ours=lost, target="0", holds=lost == 0, detail=detail, **down),
        Row(name="messages lost of all streams", unit="messages", ours=messages, target="0", holds=messages == 0, **down),
        Row(name="pictures that came between two frames and are in none", unit="pictures", ours=passed, **down),
        Row(name=f"pictures that are not their row's, of {seen}", unit="pictures", ours=wrong, target="0", holds=wrong == 0, **down),
        Row(name=f"control loop p99 lateness, {loop['scheduler']}", unit="ms", ours=lateness, target=f"< {LATENESS_MS:g} ms under FIFO",
            holds=lateness < LATENESS_MS if fifo else None, **down),
        Row(name="processor share of the whole process", unit="cores", ours=told["cpu_s"] / told["wall_s"], **down),
        Row(name="disk", unit="MB/min", ours=told["bytes"] / 1e6 / (frames / rig.camera_hz / 60), **down),
    ]  # fmt: skip


def _told(rig: Rig) -> dict[str, Any]:
    """What the rig's process tells of a recording that ran to its end."""
    done = subprocess.run(_command(rig), capture_output=True, text=True, env=_environment())
    if done.returncode:
        raise RuntimeError(f"the rig failed: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.strip().splitlines()[-1].removeprefix("done "))


def _command(rig: Rig) -> list[str]:
    return [sys.executable, "-m", "sinew.cli.benchmarks.recording_rig", json.dumps(asdict(rig))]


def _environment() -> dict[str, str]:
    import sinew

    return {**os.environ, "PYTHONPATH": str(Path(sinew.__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"}


# ---------------------------------------------------------------- kills


@dataclass(frozen=True)
class Killed:
    """What a recorder that was killed had been given, and what of it was there afterwards."""

    saved: int
    """Episodes that it had saved."""
    kept: int
    """Of them, those that are there."""
    frames_given: int
    """Frames of the episode in progress that were handed over, each with a picture of every camera."""
    frames_told: int
    """Of them, those that it said were kept."""
    frames_kept: int
    joints_lost: int
    """Joint states after the last one that was kept."""
    wrong: int
    """Pictures that are not those of their rows."""

    @property
    def frames_lost(self) -> int:
        return self.frames_given - self.frames_kept


def killed(rig: Rig, frames: int, delay_s: float) -> Killed:
    """Start a recorder, kill it and repair what it leaves.

    Args:
        rig: what it records; it tells what it is given.
        frames: of the second episode, after which it is killed.
        delay_s: a little later than that.
    """
    from demos import Dataset, repair
    from demos.accounts import samples

    process = subprocess.Popen(_command(replace(rig, tell=True)), stdout=subprocess.PIPE, text=True, env=_environment())
    assert process.stdout is not None
    lines: list[list[str]] = []
    saved = 0
    for line in process.stdout:
        lines.append(line.split())
        saved += lines[-1][0] == "saved"
        if saved and lines[-1][0] == "f" and int(lines[-1][1]) >= frames:
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
            break
    lines += [line.split() for line in process.stdout]
    process.wait()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the rig ended by itself, with code {process.returncode}")
    saved = sum(line[0] == "saved" for line in lines)
    last = [line for line in lines[max((i for i, v in enumerate(lines) if v[0] == "saved"), default=0) :] if len(line) == 3]
    given = [(int(line[1]), int(line[2])) for line in last if line[0] == "f"]
    numbers = [int(line[2]) for line in last if line[:2] == ["s", NUMBER]]
    repair(rig.out)
    data = Dataset(rig.out, cache_bytes=0)
    kept_numbers = samples(rig.out, saved).get(NUMBER) if data.num_episodes > saved else None
    newest = int(kept_numbers.values[-1, 0]) if kept_numbers is not None else numbers[0] - 1
    return Killed(
        saved=saved,
        kept=min(saved, data.num_episodes),
        frames_given=given[-1][0],
        frames_told=given[-1][1],
        frames_kept=data.episode(saved).length if data.num_episodes > saved else 0,
        joints_lost=max(0, numbers[-1] - newest),
        wrong=wrong_pictures(Path(rig.out), rig)[0],
    )


def kill_rows(folder: Path, kills: int) -> list[Row]:
    """Recorders of three cameras that are killed at random moments."""
    rng, found = random.Random(0), list[Killed]()
    for i in range(kills):
        rig = Rig(out=str(folder / f"killed{i}"), cameras=KILLED_CAMERAS, episode_s=2.0, episodes=1000)
        found.append(killed(rig, rng.randrange(5, 55), rng.random() / rig.camera_hz))
    frames, joints = max(k.frames_lost for k in found), max(k.joints_lost for k in found)
    episodes, wrong = sum(k.saved - k.kept for k in found), sum(k.wrong for k in found)
    label = f"{kills} kills at {KILLED_CAMERAS} cameras"
    detail = {"kills": [asdict(k) for k in found], "load": os.getloadavg()[1]}
    down: dict[str, Any] = {"peer": PEER, "higher_is_better": False}
    return [
        Row(name=f"most frames lost, {label}", unit="frames", ours=frames, target="<= 1", holds=frames <= 1, detail=detail, **down),
        Row(name=f"most joint states lost, {label}", unit="messages", ours=joints, target="<= 1", holds=joints <= 1, **down),
        Row(name=f"episodes lost, {label}", unit="episodes", ours=episodes, target="0", holds=episodes == 0, **down),
        Row(name=f"pictures that are not their row's, {label}", unit="pictures", ours=wrong, target="0", holds=wrong == 0, **down),
    ]


# ---------------------------------------------------------------- the repair of an hour


def repair_rows(folder: Path, seconds: float) -> list[Row]:
    """A session that was killed in its last minute, and one whose only episode was never saved."""
    from demos import Dataset, repair

    found = []
    minute = min(60.0, seconds / 2)
    for what, lengths in (("in episodes of a minute", [minute] * round(seconds / minute)), ("in one episode", [seconds])):
        root = folder / f"hour{len(lengths)}"
        frames = _session(root, lengths)
        begin = time.perf_counter()
        report = repair(root)
        took_s = time.perf_counter() - begin
        data = Dataset(root, cache_bytes=0)
        if not report.ok or len(data) != frames or data.num_episodes != len(lengths):
            raise RuntimeError(f"the repair left {len(data)} of {frames} frames: {[str(f) for f in report.findings][:3]}")
        label = f"repair {seconds / 3600:.3g} h of 2x480x640 at 30 fps, {what}, the last one never saved"
        holds = took_s < REPAIR_S if seconds == HOUR_S else None
        found.append(Row(name=label, unit="s", ours=took_s, peer=PEER, target=f"< {REPAIR_S:g} s", holds=holds, higher_is_better=False))
    return found


def _session(root: Path, lengths: Sequence[float]) -> int:
    """Make the session; the last episode is left as a killed process leaves it.

    Returns:
        Frames of all episodes.
    """
    from demos import Writer, video
    from demos.journal import Journal
    from demos.layout import RECORDING, STAMP, cameras, columns, load_info
    from demos.ledger import Ledger
    from sinew.cli.benchmarks.recording_rig import RigInterface, RigRobot, scene

    rig = Rig(out=str(root))
    interface = RigInterface(RigRobot(rig))
    fps = round(rig.camera_hz)
    Writer.create(root, fps=fps, observation_spec=interface.observation_spec, action_spec=interface.action_spec).finalize()
    info = load_info(root)
    packets: dict[str, list[bytes]] = {}
    for i, (key, kind) in enumerate(cameras(info).items()):
        rng, encoder = np.random.default_rng(i), video.FrameEncoder(kind, (rig.height, rig.width, 3), fps)
        packets[key] = [encoder.encode(scene(rig.height, rig.width, i, at, rng)) for at in range(MADE)]
    recorded = {k: v for k, v in columns(info).items() if k in ("observation.state", "action", STAMP)}
    total = 0
    for number, seconds in enumerate(lengths):
        journal = Journal(
            root / RECORDING / f"episode-{number:06d}", {"episode_index": number, "fps": fps}, recorded, cameras(info)
        )  # fmt: skip
        for at in range(round(seconds * fps)):
            stamp = round(at * 1e9 / fps)
            values = {k: np.zeros(shape, kind) for k, (kind, shape) in recorded.items()} | {STAMP: np.array([stamp])}
            journal.append(values, {k: p[at % MADE] for k, p in packets.items()}, "hold still")
        states = [(round(i * 1e9 / rig.joints_hz), 0, np.full(6, i % 100 / 100)) for i in range(round(seconds * rig.joints_hz))]
        journal.beside.add("joint_position", states)
        journal.beside.add("joint_velocity", states)
        total += journal.length
        if number < len(lengths) - 1:
            journal.seal({"success": True, "warnings": []})
        journal.close()
        if number < len(lengths) - 1:
            Ledger(root).commit(journal.folder)
    return total


def main() -> None:
    """`python -m sinew.cli.benchmarks.data_recording [MINUTES]`: only these rows, as JSON."""
    from sinew.cli.bench import as_json

    quick, minutes = "--quick" in sys.argv, next((float(a) for a in sys.argv[1:] if not a.startswith("-")), None)
    for row in rows(quick, minutes):
        os.write(1, (json.dumps(as_json(row), default=float) + "\n").encode())


if __name__ == "__main__":
    main()
