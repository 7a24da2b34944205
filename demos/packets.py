"""Compressed pictures one by one: taken out of video files as they are, and decoded as they come."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av

from demos.video import MAX_PIXELS, Converter, VideoError
from sinew.errors import DataError

FORMATS = {"h264": "h264", "hevc": "h265", "vp9": "vp9", "av1": "av1"}
"""Codecs of video files, with the names that foxglove's CompressedVideo has for them."""
FILTERS = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
"""What makes packets that stand alone of a file's: start codes, and the parameter sets before each key frame."""
DECODERS = {"av1": "libdav1d"}
"""Where FFmpeg's own decoder needs a graphics card."""


class Packet(NamedTuple):
    """One compressed picture."""

    frame: int
    """Its number in the file."""
    key: bool
    """Whether it can be decoded without those before."""
    data: bytes


def packets(path: Path, fps: float, first: int, count: int) -> Iterator[Packet]:
    """The packets of frames first … first + count - 1 as they are, and before them those back to the last key frame.

    Nothing is decoded or encoded. Every key frame has its parameter sets with it, so each packet is one message of foxglove's
    CompressedVideo.

    Raises:
        DataError: the file is damaged or short, or its frames are not stored in the order in which they are shown.
    """
    try:
        with av.open(str(path)) as container:
            yield from _packets(container, path, fps, first, count)
    except (VideoError, IndexError, OSError) as e:
        raise DataError(f"{path} cannot be read as a video ({str(e).splitlines()[0][:80]}); run sinew data repair") from None


def _packets(container: Any, path: Path, fps: float, first: int, count: int) -> Iterator[Packet]:
    stream = container.streams.video[0]
    sets = _sequence_header(stream) if codec_of(stream) == "av1" else b""
    name = FILTERS.get(codec_of(stream))
    alone: Any = av.BitStreamFilterContext(name, stream) if name else None
    if first:
        container.seek(max(0, int((first - 0.25) / fps / stream.time_base)), stream=stream, backward=True)
    waiting: list[Packet] = []
    seen, last = 0, -1
    for packet in container.demux(stream):
        if not packet.size:
            continue
        number = round(packet.pts * stream.time_base * Fraction(fps))
        if number <= last or packet.pts != packet.dts:
            raise DataError(f"{path} stores its frames in another order than they are shown (B-frames): it cannot be passed through")
        last, key = number, bool(packet.is_keyframe)  # the filter takes the packet's content away
        for whole in alone.filter(packet) if alone else (packet,):
            data = bytes(whole)
            made = Packet(number, key, sets + data if key and sets and sets not in data else data)
            waiting = [made] if key else [*waiting, made]
        if number < first:
            continue
        yield from waiting
        waiting, seen = [], number - first + 1
        if seen >= count:
            return
    raise DataError(f"{path} has {seen} of the {count} frames from {first} on; run sinew data check")


def codec_of(stream: Any) -> str:
    """FFmpeg's name of a stream's codec."""
    return stream.codec_context.codec.canonical_name


def video_codec(path: Path) -> str:
    """FFmpeg's name of the codec of a video file.

    Raises:
        DataError: it is none.
    """
    try:
        with av.open(str(path)) as container:
            return codec_of(container.streams.video[0])
    except (VideoError, IndexError, OSError) as e:
        raise DataError(f"{path} cannot be read as a video ({str(e).splitlines()[0][:80]}); run sinew data repair") from None


def is_key(codec: str, data: bytes) -> bool:
    """Whether a packet that stands alone, as of foxglove's CompressedVideo, can be decoded without those before.

    Source: ITU-T H.264 and H.265, types of NAL units in Annex B; AV1 and VP9 bitstream specifications, the first header.
    """
    if codec == "av1":
        return any((data[at] >> 3) & 15 == 1 for at in (0, 2) if at < len(data))  # a sequence header, perhaps behind a delimiter
    if codec == "vp9":
        return bool(data) and data[0] >> 6 == 2 and not data[0] & 4
    at = data.find(b"\0\0\1")
    while 0 <= at < len(data) - 3:
        kind = data[at + 3] & 31 if codec == "h264" else data[at + 3] >> 1 & 63
        if kind in ((5, 7) if codec == "h264" else range(16, 35)):
            return True
        if kind in ((1, 2, 3, 4) if codec == "h264" else range(16)):
            return False
        at = data.find(b"\0\0\1", at + 3)
    return False


def _sequence_header(stream: Any) -> bytes:
    """The sequence header of an AV1 file, which stands in its av1C box behind four bytes."""
    return bytes(stream.codec_context.extradata or b"")[4:]


class StreamDecoder:
    """Pictures of a video whose packets come one by one, in order.

    Args:
        codec: FFmpeg's name of it.
    """

    def __init__(self, codec: str) -> None:
        self._rgb = Converter("rgb24")
        self._context: Any = av.CodecContext.create(DECODERS.get(codec, codec), "r")
        self._context.thread_count = 1
        delay = {"max_frame_delay": "1"} if codec in DECODERS else {"flags": "low_delay"}
        self._context.options = {"max_pixels": str(MAX_PIXELS), **delay}

    def decode(self, number: int, data: bytes) -> Iterator[tuple[int, Any]]:
        """(number, uint8 (height, width, 3)) of the pictures that are known now; a damaged packet gives none.

        Args:
            number: of the packet; its picture gets it.
            data: empty for the end, after which there may be more.
        """
        packet: Any = av.Packet(data) if data else None
        if packet is not None:
            packet.pts = packet.dts = number
        try:
            for frame in self._context.decode(packet):
                yield int(frame.pts), self._rgb.array(frame)
        except VideoError:
            return
