"""Where the cameras were: what a dataset, the policy trained on it and a deployment tell of their calibration, to be compared.

A dataset keeps it as `meta/calibrations.json`, a run as `calibrations.json`. A calibration is the cameras of one or several
results of `sinew calibrate`; it has a hash of its own. Episodes recorded after the cameras were calibrated again have another one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sinew.errors import DataError
from sinew.rundir import read_json, write_json
from sinew.se3 import Array, se3_inverse, se3_log

FILE = "calibrations.json"
VERSION = 1
UNKNOWN = ""
"""Hash of episodes of which nobody told where the cameras were."""
SURE = 1e-3
"""A difference that chance makes less often than this is one."""
NEGLIGIBLE_M, NEGLIGIBLE_RAD = 1e-3, math.radians(0.2)
"""Cameras nearer to each other than this see the same, however exactly their places are known."""
LENS_SHARE = 0.01
"""Lenses that differ by less than this share of the picture's width show the same."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The cameras as one set of results told them."""

    cameras: tuple[Mapping[str, Any], ...] = ()
    """As in calibration.json: name, mount, T (4, 4) m, covariance (6, 6) rad and m, camera (the lens), hash and more."""
    from_episode: int = 0
    """First episode of a dataset that was recorded with it; the next one's first episode is the end."""

    @property
    def hash(self) -> str:
        """The camera's own hash where there is one camera; of all names and hashes else; `UNKNOWN` without any."""
        if not self.cameras:
            return UNKNOWN
        told = sorted((str(c["name"]), str(c["hash"])) for c in self.cameras)
        return told[0][1] if len(told) == 1 else hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def camera(self, name: str, others: int = 1) -> Mapping[str, Any] | None:
        """The camera of a name; where it is one alone and `others` is one too, that one by whatever name."""
        found = next((c for c in self.cameras if c["name"] == name), None)
        return self.cameras[0] if found is None and len(self.cameras) == others == 1 else found


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far a camera is from where another calibration says it is."""

    metres: float
    radians: float
    chance: float
    """How often the errors of both calibrations alone would put them so far apart."""
    lens_share: float
    """By what share of the picture's width the lenses differ at its middle or edge; infinity for another shape of picture."""
    mounts: tuple[str, str]

    @property
    def same(self) -> bool:
        """Whether the camera sees the world from the same place through the same lens, as far as it can be told and matters."""
        near = self.metres < NEGLIGIBLE_M and self.radians < NEGLIGIBLE_RAD
        return (near or self.chance > SURE) and self.lens_share < LENS_SHARE and self.mounts[0] == self.mounts[1]

    @property
    def told(self) -> str:
        """What differs, for a line: "is 3.1 mm and 0.40 degrees from where it was"."""
        if self.mounts[0] != self.mounts[1]:
            places = {"in_hand": "on the hand", "to_hand": "beside the robot"}
            return f"is {places.get(self.mounts[1], self.mounts[1])} and was {places.get(self.mounts[0], self.mounts[0])}"
        parts = [f"is {1e3 * self.metres:.1f} mm and {math.degrees(self.radians):.2f} degrees from where it was"]
        if not math.isfinite(self.lens_share):
            parts.append("has pictures of another shape")
        elif self.lens_share >= LENS_SHARE:
            parts.append(f"has another lens ({100 * self.lens_share:.1f} % of the picture's width apart)")
        return " and ".join(parts)


def apart(was: Mapping[str, Any], now: Mapping[str, Any]) -> Apart:
    """Compare a camera of one calibration with a camera of another."""
    first, second = np.asarray(was["T"], dtype=float), np.asarray(now["T"], dtype=float)
    difference = se3_log(se3_inverse(first) @ second)
    covariance = np.asarray(was["covariance"], dtype=float) + np.asarray(now["covariance"], dtype=float)
    covariance = np.roll(covariance, (3, 3), (0, 1))  # rotation first in the files, translation first in twists
    square = float(difference @ np.linalg.pinv(covariance, hermitian=True) @ difference) if np.isfinite(covariance).all() else math.inf
    half = 0.5 * max(square, 0.0)
    # the upper tail of chi-square with 6 degrees of freedom
    chance = math.exp(-half) * (1.0 + half + 0.5 * half * half) if half < 700.0 else 0.0
    return Apart(
        metres=float(np.linalg.norm(first[:3, 3] - second[:3, 3])),
        radians=float(np.linalg.norm(difference[3:])),
        chance=chance,
        lens_share=lenses_apart(was["camera"], now["camera"]),
        mounts=(str(was["mount"]), str(now["mount"])),
    )


def lenses_apart(was: Mapping[str, Any], now: Mapping[str, Any]) -> float:
    """Compare two lenses, of width, height, focal and centre.

    Returns:
        Share of the width by which the principal point, or what the focal length puts at the edge, is elsewhere; infinity where the
        pictures are of another shape.
    """
    if abs(was["width"] * now["height"] - now["width"] * was["height"]) > 0.01 * was["width"] * now["height"]:
        return math.inf

    def scaled(lens: Mapping[str, Any]) -> Array:
        return np.array([*lens["focal"], *lens["centre"]], dtype=float) / lens["width"]

    a, b = scaled(was), scaled(now)
    edge = 0.5 * float(np.abs(a[:2] - b[:2]).max() / a[:2].min())
    return max(edge, float(np.abs(a[2:] - b[2:]).max()))


# ---------------------------------------------------------------- keeping them


def load(place: Path | str) -> tuple[Calibration, ...]:
    """The calibrations of a dataset or run, in the order of their episodes; none where nobody told.

    Raises:
        DataError: the file is damaged or of another version.
    """
    path = next((p for p in (Path(place) / FILE, Path(place) / "meta" / FILE) if p.is_file()), None)
    return () if path is None else read(read_json(path), str(path))


def read(content: Any, where: str) -> tuple[Calibration, ...]:
    """Calibrations of what `as_json` made of some.

    Raises:
        DataError: it is something else.
    """
    try:
        if content["version"] != VERSION:
            raise DataError(f"{where} is of version {content['version']}, this Sinew reads {VERSION}")
        made = []
        for row in content["calibrations"]:
            cameras = tuple(dict(camera) for camera in row["cameras"])
            for camera in cameras:
                _check(camera)
            made.append(Calibration(cameras=cameras, from_episode=int(row.get("from_episode", 0))))
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DataError(f"{where} holds no calibrations ({e}); remove it, or record anew with --calibration") from None
    return tuple(made)


def _check(camera: Mapping[str, Any]) -> None:
    poses = np.asarray(camera["T"], dtype=float), np.asarray(camera["covariance"], dtype=float)
    if poses[0].shape != (4, 4) or poses[1].shape != (6, 6) or not np.isfinite(poses[0]).all():
        raise ValueError(f"camera {camera['name']} has no pose")
    lens = camera["camera"]
    if not (len(lens["focal"]) == len(lens["centre"]) == 2 and min(lens["width"], lens["height"], *lens["focal"]) > 0):
        raise ValueError(f"camera {camera['name']} has no lens")
    if not isinstance(camera["hash"], str) or not isinstance(camera["mount"], str):
        raise ValueError(f"camera {camera['name']} has no hash or mount")


def as_json(calibrations: Sequence[Calibration]) -> dict[str, Any]:
    """What the file holds."""
    rows = [{"from_episode": c.from_episode, "hash": c.hash, "cameras": list(c.cameras)} for c in calibrations]
    return {"version": VERSION, "calibrations": rows}


def store(calibrations: Sequence[Calibration], folder: Path | str) -> None:
    """Write them into the folder of a run, or into a dataset's "meta"; nothing is written where there are none."""
    if calibrations:
        write_json(Path(folder) / FILE, as_json(calibrations))


def begin(root: Path | str, episode: int, calibration: Calibration | None) -> None:
    """From an episode on, a dataset is recorded with another calibration, or with one that nobody tells (None).

    Args:
        root: the dataset.
        episode: number of the next episode.
        calibration: its cameras; where they are those of before, nothing changes.
    """
    before = load(root)
    now = Calibration(cameras=() if calibration is None else calibration.cameras, from_episode=episode)
    if not before and not now.cameras:
        return
    kept = [c for c in before if c.from_episode < episode]
    if not kept and episode:
        kept = [Calibration()]
    if not kept or kept[-1].hash != now.hash:
        kept.append(now)
    store(kept, Path(root) / "meta")


def collected(folders: Iterable[Path | str]) -> tuple[Calibration, ...]:
    """Every calibration that some datasets or runs have, each once: what a run keeps of its data.

    Data of which nobody tells are one with `UNKNOWN` hash among the others; where there are no others nothing is kept.
    """
    found: dict[str, Calibration] = {}
    for folder in folders:
        for calibration in load(folder) or (Calibration(),):
            found.setdefault(calibration.hash, Calibration(cameras=calibration.cameras))
    return tuple(found.values()) if set(found) - {UNKNOWN} else ()
