"""Disk per minute at equal picture quality, beside lerobot's own videos of the same frames.

Ours is measured at several rates of quality and read off, between two of them, at the quality that lerobot's videos have: the same
encoder as the recorder's, with another number. Two kinds of pictures, since what they show decides most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks.data import CAMERAS, FPS, SIZES, Peer, record, shown, video_bytes

RATES = (14, 17, 20, 23, 26, 29, 33, 38)
TARGET = 1.1


def rows(quick: bool, folder: Path, peer: Peer) -> list[Row]:
    """Measure.

    Args:
        quick: fewer frames.
        folder: for datasets.
        peer: lerobot.
    """
    found = []
    for (height, width), frames in zip(SIZES, (30, 10) if quick else (60, 40), strict=True):
        for look in ("smooth", "textured"):
            root, pictures = folder / f"size-{height}-{look}", shown(frames, height, width, look)
            asked = {"root": str(root), "height": height, "width": width, "frames": frames, "episodes": 1, "look": look}
            made = peer.ask(do="record", **asked, streaming=True, quality=True)
            per_minute = 60 * FPS / frames / 1e6
            curve = [_coded(root.with_name(f"{root.name}-{rate}"), pictures, rate) for rate in RATES]
            usual = curve[RATES.index(20)]
            theirs = video_bytes(root) * per_minute if made else None
            ours, best = (_bytes_at(curve, made["psnr"]) if made else None), max(c["psnr"] for c in curve)
            who = f"lerobot's av1 of {made['psnr']:.1f} dB" if made else peer.why
            beyond = f"; ours reaches {best:.1f} dB at most" if made and ours is None else ""
            name = f"disk {height}x{width}, {look}"
            found += [
                Row(name=f"{name}, at equal PSNR", unit="MB/min", ours=None if ours is None else ours * per_minute, peer=who + beyond,
                    peer_value=theirs, target="<= 1.1x peer", higher_is_better=False,
                    holds=None if theirs is None else ours is not None and ours * per_minute <= TARGET * theirs),
                Row(name=f"{name}, as recorded, {usual['psnr']:.1f} dB", unit="MB/min", ours=usual["bytes"] * per_minute, peer=who,
                    peer_value=theirs, higher_is_better=False),
            ]  # fmt: skip
    return found


def _coded(root: Path, frames: Sequence[Mapping[str, Any]], rate: int) -> dict[str, float]:
    """Bytes and quality of the videos that the recorder makes at a constant rate factor."""
    import demos
    from demos import video

    usual, video.QUALITY_CRF = video.QUALITY_CRF, str(rate)
    try:
        record(root, frames)
    finally:
        video.QUALITY_CRF = usual
    data, errors = demos.Dataset(root, cache_bytes=0), []
    for camera in CAMERAS:
        seen = np.concatenate(list(data.pictures(camera, 0)))
        errors += [np.mean((picture.astype(np.float32) - frame[camera]) ** 2) for picture, frame in zip(seen, frames, strict=True)]
    return {"bytes": video_bytes(root), "psnr": 10 * float(np.log10(255**2 / np.mean(errors)))}


def _bytes_at(curve: Sequence[Mapping[str, float]], psnr: float) -> float | None:
    """Bytes at a quality, between two measured ones; None outside of them."""
    rising = sorted(curve, key=lambda c: c["psnr"])
    levels = [c["psnr"] for c in rising]
    if not levels[0] <= psnr <= levels[-1]:
        return None
    return float(np.exp(np.interp(psnr, levels, np.log([c["bytes"] for c in rising]))))
