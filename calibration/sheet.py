"""A board as a page to print: vector and bitmap at true size, with a ruler that shows whether the printer kept it."""

from __future__ import annotations

import zlib
from pathlib import Path

from calibration.boards import Board
from sinew.errors import InputError

PAPERS_MM: dict[str, tuple[float, float]] = {"a4": (210.0, 297.0), "a3": (297.0, 420.0), "letter": (215.9, 279.4), "a2": (420.0, 594.0)}
"""Width and height, upright."""
POINTS_PER_MM = 72.0 / 25.4
PIXELS_PER_M = 300.0 / 0.0254
MARGIN_MM, RULER_MM = 8.0, 100.0
"""What printers leave white, and the length of the ruler; it is shortened to fit."""


def write_sheet(board: Board, path: Path, paper: str = "a4") -> dict[str, float | str]:
    """Write a PDF of one page.

    Returns:
        What to measure after printing: "ruler_mm", and the board's "width_mm" and "height_mm".

    Raises:
        InputError: unknown paper, or the board is larger than it.
    """
    if paper not in PAPERS_MM:
        raise InputError(f"paper {paper!r} is not known; known are {', '.join(PAPERS_MM)}")
    width_mm, height_mm = (1e3 * v for v in board.size_m)
    page = PAPERS_MM[paper]
    room = 2 * MARGIN_MM + 14.0
    upright = width_mm <= page[0] - 2 * MARGIN_MM and height_mm <= page[1] - room
    if not upright:
        page = (page[1], page[0])
        if width_mm > page[0] - 2 * MARGIN_MM or height_mm > page[1] - room:
            raise InputError(
                f"a board of {width_mm:.0f} x {height_mm:.0f} mm does not fit on {paper}: smaller squares, "
                "fewer of them, or another --paper"
            )
    picture = board.picture(PIXELS_PER_M)
    left, bottom = (page[0] - width_mm) / 2, (page[1] - height_mm) / 2 + 4.0
    ruler = min(RULER_MM, page[0] - 2 * MARGIN_MM - 10)
    at = MARGIN_MM + 3.0
    marks = [f"{left + 0:.3f} {at:.3f} m {left + ruler:.3f} {at:.3f} l S"]
    for i in range(int(ruler) + 1):
        size = 4.0 if i % 10 == 0 else 2.5 if i % 5 == 0 else 1.5
        marks.append(f"{left + i:.3f} {at:.3f} m {left + i:.3f} {at + size:.3f} l S")
    text = f"This line is {ruler:.0f} mm long. {_name(board)}. Print at 100 %, glue it on something flat, measure it."
    content = "\n".join(
        [
            "q", f"{POINTS_PER_MM:.6f} 0 0 {POINTS_PER_MM:.6f} 0 0 cm",
            "q", f"{width_mm:.4f} 0 0 {height_mm:.4f} {left:.4f} {bottom:.4f} cm", "/Board Do", "Q",
            "0.15 w", *marks,
            "BT", "/F 3 Tf", f"{left:.3f} {at - 4.0:.3f} Td", f"({_escaped(text)}) Tj", "ET", "Q",
        ]
    ).encode("latin-1")  # fmt: skip
    data = zlib.compress(picture.tobytes(), 9)
    image = (
        f"<< /Type /XObject /Subtype /Image /Width {picture.shape[1]} /Height {picture.shape[0]} /ColorSpace /DeviceGray "
        f"/BitsPerComponent 8 /Filter /FlateDecode /Length {len(data)} >>"
    )
    box = " ".join(f"{v * POINTS_PER_MM:.3f}" for v in page)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /ViewerPreferences << /PrintScaling /None >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {box}] /Contents 4 0 R "
        f"/Resources << /XObject << /Board 5 0 R >> /Font << /F 6 0 R >> >> >>".encode(),
        f"<< /Length {len(content)} >>\nstream\n".encode() + content + b"\nendstream",
        image.encode() + b"\nstream\n" + data + b"\nendstream",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    path.write_bytes(_document(objects))
    return {"ruler_mm": ruler, "width_mm": width_mm, "height_mm": height_mm, "paper": paper}


def _document(objects: list[bytes]) -> bytes:
    """A PDF file of numbered objects, the first the catalogue."""
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    start = len(out)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n"
    return out + f"{head}startxref\n{start}\n%%EOF\n".encode()


def _name(board: Board) -> str:
    marker = f", markers {1e3 * board.marker_m:g} mm {board.dictionary_name}" if board.dictionary_name else ""
    return f"{board.kind} {board.columns} x {board.rows}, squares {1e3 * board.square_m:g} mm{marker}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
