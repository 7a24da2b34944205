"""Boards in pictures: corners to a fraction of a pixel, how far each can be trusted, or why a picture cannot be used.

A corner's standard deviation follows from the gradients around it: noise of the picture over their strength (Foerstner 1986). A
picture is refused when its edges are too wide (out of focus), wider one way than the other (motion) or mostly burnt out (glare).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.boards import Board, charuco, dictionary
from sinew.errors import InputError
from sinew.se3 import Array

MIN_CORNERS = 6
"""Fewer do not tell a pose."""
EDGE_SAMPLES = 24
"""Places along the edge of a tag at which it is looked for."""
WIDE_EDGE_PX, MOTION_RATIO = 7.0, 2.2
"""Edges wider than this are out of focus; this much wider one way than the other, moved."""
BURNT, BURNT_PART = 250, 0.35
"""Grey values that are burnt out, and the part of the patches that may be."""


@dataclass(frozen=True)
class Detection:
    """What was found in a picture."""

    ids: np.ndarray
    """Numbers of the corners (K,), as in `Board.points`."""
    pixels: Array
    """(K, 2)."""
    sigma: Array
    """Standard deviations relative to the middle one (K,)."""
    refused: str = ""
    """Why the picture cannot be used; empty when it can."""


def detect(image: np.ndarray, board: Board) -> Detection:
    """Find a board.

    Args:
        image: (height, width) or (height, width, 3) uint8.
        board: what to look for.

    Raises:
        InputError: the image is no 8-bit picture.
    """
    import cv2

    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
        raise InputError(f"a picture must be uint8 of (height, width) or (height, width, 3), given {image.dtype} {image.shape}")
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    finders = {"charuco": _charuco, "apriltag": _apriltag, "checkerboard": _checkerboard, "circles": _circles}
    ids, pixels = finders[board.kind](grey, board)
    if len(ids) < MIN_CORNERS:
        width, other = _widths(grey)
        wide = max(width, other)
        blurred = (
            f"; the board is not wholly in the picture, or, with edges {wide:.0f} px wide, {_why(width, other)}"
            if wide > WIDE_EDGE_PX
            else ""
        )
        return _refuse(f"{len(ids)} of {board.count} corners found: at least {MIN_CORNERS} are needed{blurred}")
    if board.kind == "circles":
        return Detection(ids, pixels, np.ones(len(ids)))
    sigma, across, along, burnt = _patches(grey, pixels)
    usable = np.isfinite(sigma) & (burnt < 2 * BURNT_PART)
    if np.mean(burnt) > BURNT_PART:
        return _refuse(f"glare: {100 * np.mean(burnt):.0f} % of the corners' surroundings are burnt out; less light or exposure")
    if usable.sum() < MIN_CORNERS:
        return _refuse(f"{int(usable.sum())} corners can be told from noise: at least {MIN_CORNERS} are needed")
    width, other = float(np.median(across[usable])), float(np.median(along[usable]))
    if max(width, other) > WIDE_EDGE_PX:
        return _refuse(f"edges are {max(width, other):.1f} px wide: {_why(width, other)}")
    relative = sigma[usable] / np.median(sigma[usable])
    # the board's flatness and the lens leave every corner an error of its own: about half of the middle corner's variance
    return Detection(ids[usable], pixels[usable], np.sqrt(0.5 + 0.5 * np.clip(relative, 0.5, 4.0) ** 2))


def _why(width: float, other: float) -> str:
    moved = max(width, other) > MOTION_RATIO * min(width, other)
    return "something moved while it was taken, wait until all stands still" if moved else "out of focus"


def _widths(grey: np.ndarray) -> tuple[float, float]:
    """Widths in pixels of the sharpest edges of a whole picture, those along x and along y; 0 where there are none."""
    import cv2

    smooth = cv2.GaussianBlur(grey, (3, 3), 0).astype(np.float32)
    contrast = float(np.percentile(smooth, 99)) - float(np.percentile(smooth, 1))
    if contrast < 30:
        return 0.0, 0.0
    slopes = [float(np.percentile(np.abs(cv2.Sobel(smooth, cv2.CV_32F, *d, scale=1 / 8)), 99.5)) for d in ((1, 0), (0, 1))]
    return contrast / max(slopes[0], 1e-3), contrast / max(slopes[1], 1e-3)


def _refuse(why: str) -> Detection:
    return Detection(np.zeros(0, dtype=int), np.zeros((0, 2)), np.zeros(0), why)


# ---------------------------------------------------------------- kinds of boards


def _charuco(grey: np.ndarray, board: Board) -> tuple[np.ndarray, Array]:
    import cv2

    settings = cv2.aruco.CharucoParameters()
    settings.tryRefineMarkers = True  # markers that were hardly missed are looked for where the others put them
    corners, ids, _, _ = cv2.aruco.CharucoDetector(charuco(board), settings).detectBoard(grey)
    if ids is None or not len(ids):
        return np.zeros(0, dtype=int), np.zeros((0, 2))
    return np.ravel(ids).astype(int), np.asarray(corners, dtype=float).reshape(-1, 2)


def _apriltag(grey: np.ndarray, board: Board) -> tuple[np.ndarray, Array]:
    import cv2

    found, ids, _ = cv2.aruco.ArucoDetector(dictionary(board.dictionary_name)).detectMarkers(grey)
    tags = {int(n): np.asarray(tag, dtype=float).reshape(4, 2) for n, tag in zip(np.ravel([] if ids is None else ids), found, strict=True)}
    numbers = sorted(n for n in tags if 0 <= n < board.columns * board.rows)
    if not numbers:
        return np.zeros(0, dtype=int), np.zeros((0, 2))
    pixels = np.array([tags[n] for n in numbers])
    for _ in range(2):
        pixels = _where_edges_meet(grey, pixels)
    known = np.isfinite(pixels).all((1, 2))
    ids = (4 * np.array(numbers)[:, None] + np.arange(4))[known]
    return ids.ravel().astype(int), pixels[known].reshape(-1, 2)


def _where_edges_meet(grey: np.ndarray, tags: Array) -> Array:
    """Corners of tags (N, 4, 2) as meeting points of lines through their edges; NaN where an edge is not seen.

    The usual refinement looks for saddle points, which the corner of a lone tag is not.
    """
    import cv2

    ends = np.roll(tags, -1, axis=1)
    along = ends - tags
    length = np.linalg.norm(along, axis=-1, keepdims=True)
    direction = along / np.maximum(length, 1e-9)
    normal = np.stack([direction[..., 1], -direction[..., 0]], -1)
    reach = float(np.clip(np.median(length) / 10, 1.5, 5.0))
    parts, offsets = np.linspace(0.12, 0.88, EDGE_SAMPLES), np.linspace(-reach, reach, 2 * int(np.ceil(reach)) * 2 + 1)
    foot = tags[:, :, None] + parts[:, None] * along[:, :, None]  # (N, 4, S, 2)
    at = (foot[:, :, :, None] + offsets[:, None] * normal[:, :, None, None]).astype(np.float32)
    flat = at.reshape(-1, len(offsets) * EDGE_SAMPLES, 2)
    values = cv2.remap(grey.astype(np.float32), flat[..., 0], flat[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    slope = np.diff(values.reshape(at.shape[:-1]), axis=-1)
    slope = np.maximum(slope * np.sign(slope.sum((2, 3)))[..., None, None], 0.0) ** 2
    middle = 0.5 * (offsets[1:] + offsets[:-1])
    weight = slope.sum(-1)
    shift = (slope * middle).sum(-1) / np.maximum(weight, 1e-9)
    # a line through each edge: offset = a + b part
    w = np.where(weight > 0.1 * weight.max(-1, keepdims=True), 1.0, 0.0)
    mean_t, mean_s = ((w * v).sum(-1) / np.maximum(w.sum(-1), 1e-9) for v in (parts, shift))
    b = (w * (parts - mean_t[..., None]) * shift).sum(-1) / np.maximum((w * (parts - mean_t[..., None]) ** 2).sum(-1), 1e-9)
    start = tags + (mean_s - b * mean_t)[..., None] * normal
    heading = along + b[..., None] * normal
    # corner i lies on edge i and on the one before
    other, turn = np.roll(start, 1, axis=1), np.roll(heading, 1, axis=1)
    cross = heading[..., 0] * turn[..., 1] - heading[..., 1] * turn[..., 0]
    gap = other - start
    t = (gap[..., 0] * turn[..., 1] - gap[..., 1] * turn[..., 0]) / np.where(np.abs(cross) > 1e-9, cross, np.nan)
    corners = start + t[..., None] * heading
    near = np.linalg.norm(corners - tags, axis=-1, keepdims=True) < 2 * reach + 1
    return np.where(near, corners, np.nan)


def _checkerboard(grey: np.ndarray, board: Board) -> tuple[np.ndarray, Array]:
    """All corners or none, from the upper left of the picture on; `resolve_order` settles which way round over several views."""
    import cv2

    # without FAST_CHECK, which refuses boards seen at a slant
    size, flags = (board.columns - 1, board.rows - 1), cv2.CALIB_CB_ADAPTIVE_THRESH + cv2.CALIB_CB_NORMALIZE_IMAGE
    found, corners = cv2.findChessboardCorners(grey, size, flags=flags)
    if not found:
        return np.zeros(0, dtype=int), np.zeros((0, 2))
    grid = np.asarray(corners, dtype=float).reshape(size[1], size[0], 2)
    return np.arange(board.count), _where_squares_meet(grey, grid).reshape(-1, 2)


def _where_squares_meet(grey: np.ndarray, grid: Array) -> Array:
    """Corners (rows, columns, 2) moved to the point that the edges around each run through: all slopes there are across the way to it.

    The window is the part of the four squares around the corner, as slanted as they are, so that it holds long edges and none of
    other corners. Source: Foerstner and Guelch 1987.
    """
    import cv2

    smooth = grey.astype(np.float32)
    dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    along, down = np.gradient(grid, axis=1), np.gradient(grid, axis=0)
    result = grid.copy()
    for at in np.ndindex(grid.shape[:2]):
        sides = np.stack([along[at], down[at]], 1)
        longest = float(np.linalg.norm(sides, axis=0).max())
        if abs(np.linalg.det(sides)) < 4.0:  # squares of a pixel or two
            continue
        to_sides = np.linalg.inv(sides) / min(WINDOW, WINDOW_PX / longest)
        reach = np.ceil(np.abs(np.linalg.inv(to_sides)).sum(1)).astype(int) + 1
        middle = np.round(grid[at]).astype(int)
        (left, top), (right, bottom) = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, grey.shape[::-1])
        pixels = np.stack(np.meshgrid(np.arange(left, right), np.arange(top, bottom)), -1).reshape(-1, 2).astype(float)
        slopes = np.stack([dx[top:bottom, left:right].ravel(), dy[top:bottom, left:right].ravel()], -1).astype(float)
        corner = _meeting_point(grid[at], pixels, slopes, to_sides)
        if np.linalg.norm(corner - grid[at]) < 0.5 * longest:
            result[at] = corner
    return result


WINDOW, WINDOW_PX = 0.7, 30.0
"""Part of the squares around a corner that is looked at, and at most so many pixels to each side."""


def _meeting_point(corner: Array, pixels: Array, slopes: Array, to_sides: np.ndarray) -> Array:
    """The point (2,) from which all slopes (N, 2) at pixels (N, 2) point sideways; those near the window's border count little."""
    for _ in range(8):
        weight = np.prod(np.maximum(1 - ((pixels - corner) @ to_sides.T) ** 2, 0.0), 1) ** 2
        weighted = weight[:, None] * slopes
        tensor = weighted.T @ slopes
        if np.linalg.det(tensor) < 1e-9 * np.trace(tensor) ** 2:
            break
        moved = np.linalg.solve(tensor, weighted.T @ np.sum(slopes * pixels, 1)) - corner
        corner = corner + moved
        if np.abs(moved).max() < 1e-3:
            break
    return corner


def _circles(grey: np.ndarray, board: Board) -> tuple[np.ndarray, Array]:
    """A grid of circles of which one, at the lower left, is larger and tells which way round it is."""
    import cv2

    settings = cv2.SimpleBlobDetector.Params()
    settings.minArea, settings.maxArea = 20.0, float(grey.size) / 10
    settings.minThreshold, settings.maxThreshold, settings.thresholdStep = 20, 220, 10
    settings.filterByCircularity, settings.minCircularity = True, 0.6
    finder = cv2.SimpleBlobDetector.create(settings)
    for columns, rows in ((board.columns, board.rows), (board.rows, board.columns)):
        found, centres = cv2.findCirclesGrid(grey, (columns, rows), None, cv2.CALIB_CB_SYMMETRIC_GRID + cv2.CALIB_CB_CLUSTERING, finder)
        if found:
            break
    else:
        return np.zeros(0, dtype=int), np.zeros((0, 2))
    grid = np.asarray(centres, dtype=float).reshape(rows, columns, 2)
    areas = _areas(grey, grid.reshape(-1, 2)).reshape(rows, columns)
    for turned in (np.rot90(np.arange(rows * columns).reshape(rows, columns), k) for k in range(4)):
        for candidate in (turned, turned[:, ::-1]):
            if candidate.shape != (board.rows, board.columns):
                continue
            points = grid.reshape(-1, 2)[candidate.ravel()].reshape(board.rows, board.columns, 2)
            right, down = points[0, -1] - points[0, 0], points[-1, 0] - points[0, 0]
            big = int(np.argmax(areas.ravel()[candidate.ravel()]))
            if right[0] * down[1] - right[1] * down[0] > 0 and big == board.origin:
                return np.arange(board.count), points.reshape(-1, 2)
    return np.zeros(0, dtype=int), np.zeros((0, 2))


def _areas(grey: np.ndarray, centres: Array) -> Array:
    """Pixels of the dark spot around each centre (N,)."""
    import cv2

    _, dark = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(dark)
    height, width = grey.shape
    at = labels[np.clip(np.round(centres[:, 1]).astype(int), 0, height - 1), np.clip(np.round(centres[:, 0]).astype(int), 0, width - 1)]
    return np.where(at > 0, np.asarray(stats)[:, cv2.CC_STAT_AREA][np.asarray(at, dtype=int)], 0).astype(float)


# ---------------------------------------------------------------- trust


def _patches(grey: np.ndarray, pixels: Array) -> tuple[Array, Array, Array, Array]:
    """Of every corner: standard deviation in pixels, edge widths along the two axes in pixels, part that is burnt out; (K,) each."""
    import cv2

    spacing = _spacing(pixels)
    half = int(np.clip(spacing / 3, 3, 12))
    size = 2 * half + 1
    smooth = cv2.GaussianBlur(grey, (3, 3), 0).astype(np.float32)
    dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    noise = max(float(np.median(np.abs(grey.astype(np.float32) - smooth))) * 1.9, 0.5)
    count = len(pixels)
    sigma, across, along, burnt = np.full(count, np.inf), np.zeros(count), np.zeros(count), np.ones(count)
    for i, (x, y) in enumerate(pixels):
        left, top = round(float(x)) - half, round(float(y)) - half
        if left < 0 or top < 0 or left + size > grey.shape[1] or top + size > grey.shape[0]:
            continue
        part = (slice(top, top + size), slice(left, left + size))
        gx, gy, patch = dx[part], dy[part], grey[part]
        tensor = np.array([[np.sum(gx * gx), np.sum(gx * gy)], [np.sum(gx * gy), np.sum(gy * gy)]])
        values = np.linalg.eigvalsh(tensor)
        if values[0] > 1e-6:
            sigma[i] = noise * np.sqrt(1 / values[0])
        contrast = float(np.percentile(patch, 95)) - float(np.percentile(patch, 5))
        across[i] = contrast / max(float(np.percentile(np.abs(gx), 98)), 1e-3)
        along[i] = contrast / max(float(np.percentile(np.abs(gy), 98)), 1e-3)
        burnt[i] = float(np.mean(patch >= BURNT))
    # white paper may be burnt out beside a black square: half of a patch is white
    return sigma, across, along, np.maximum(burnt - 0.5, 0.0) * 2


def _spacing(pixels: Array) -> float:
    """Distance between neighbouring corners, px."""
    distances = np.linalg.norm(pixels[:, None] - pixels[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return float(np.median(distances.min(1)))
