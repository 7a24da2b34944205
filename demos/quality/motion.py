"""How an episode moves: how straight, how smooth, how long it stands still."""

from __future__ import annotations

import numpy as np

IDLE_SHARE = 0.05
"""Of the usual speed: slower is standing still."""
HIGHEST_HZ, AMPLITUDE, PADDING = 10.0, 0.05, 4
"""Of the spectral arc length, as its authors chose them."""


def spectral_arc_length(speed: np.ndarray, rate_hz: float) -> float:
    """Smoothness of a movement: minus the arc length of its speed's normalised spectrum; near -1.4 for one smooth stroke, lower
    for jerky ones.

    Args:
        speed: (T,) non-negative.
        rate_hz: samples per second.

    Returns:
        SPARC; 0.0 where nothing moves.

    Source: Balasubramanian, Melendez-Calderon, Roby-Brami and Burdet 2015, J. NeuroEngineering Rehabil. 12:112, eq. 5, with
    cut-off 10 Hz, amplitude 0.05 and zero padding by 4 powers of 2.
    """
    if len(speed) < 2 or not speed.any():
        return 0.0
    size = 2 ** (int(np.ceil(np.log2(len(speed)))) + PADDING)
    spectrum = np.abs(np.fft.rfft(speed, size))
    spectrum /= spectrum.max()
    frequency = np.arange(len(spectrum)) * rate_hz / size
    spectrum, frequency = spectrum[frequency <= HIGHEST_HZ], frequency[frequency <= HIGHEST_HZ]
    last = int(np.flatnonzero(spectrum >= AMPLITUDE)[-1])
    if last == 0:
        return 0.0
    step = np.diff(frequency[: last + 1]) / (frequency[last] - frequency[0])
    return -float(np.hypot(step, np.diff(spectrum[: last + 1])).sum())


def efficiency(path: np.ndarray) -> float:
    """Straight distance from the first to the last point of a path (T, D) divided by its length; 1.0 where nothing moves."""
    length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    return float(np.linalg.norm(path[-1] - path[0]) / length) if length > 0 else 1.0


def idle(speed: np.ndarray, usual: float) -> float:
    """Share of the frames (T,) that move slower than `IDLE_SHARE` of the usual speed."""
    return float((speed < IDLE_SHARE * usual).mean()) if len(speed) else 0.0


def speed(path: np.ndarray, rate_hz: float) -> np.ndarray:
    """(T,) speed along a path (T, D), that of the last frame repeated; zero for a single frame or no columns."""
    if len(path) < 2:
        return np.zeros(len(path))
    found = np.linalg.norm(np.diff(path, axis=0), axis=1) * rate_hz
    return np.append(found, found[-1])
