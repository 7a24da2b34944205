"""Pictures to packets and back: one packet per frame while recording, MP4 at rest, random access when reading. The only user of PyAV."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from sinew.errors import DataError, MissingDependency

KEYFRAME_EVERY = 2
"""Frames; so reaching any frame takes at most two decodes."""
QUALITY_CRF = "20"
OPEN_VIDEOS = 32
MAX_PIXELS = 2**26
"""A picture that says it is larger is not decoded: a few bytes may claim gigabytes."""
VideoError = av.error.FFmpegError


class FrameEncoder:
    """Turns each image into bytes at once, nothing is held back: H.264 for cameras kept as video, PNG for those kept as images.

    Args:
        kind: "video" or "image".
        shape: (height, width, 3).
        fps: frames per second.
    """

    def __init__(self, kind: str, shape: Sequence[int], fps: int) -> None:
        self.kind, self.frames = kind, 0
        name = "libx264" if kind == "video" else "png"
        if name not in av.codecs_available:
            raise MissingDependency("this build of PyAV has no libx264; run: pip install --force-reinstall --only-binary av av")
        context: Any = av.CodecContext.create(name, "w")
        context.height, context.width = int(shape[0]), int(shape[1])
        context.time_base, context.framerate = Fraction(1, fps), Fraction(fps)
        context.thread_count = 1
        if kind == "video":
            # 4:2:0 halves each side of the colour planes, which odd sizes cannot.
            context.pix_fmt = "yuv420p" if shape[0] % 2 == 0 and shape[1] % 2 == 0 else "yuv444p"
            context.gop_size = KEYFRAME_EVERY
            # zerolatency: no look-ahead and no B-frames, so the packet of a frame exists when the frame is acknowledged.
            context.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": QUALITY_CRF}
        else:
            context.pix_fmt = "rgb24"
            context.options = {"compression_level": "1"}
        self._context, self._convert = context, Converter(context.pix_fmt)

    def encode(self, image: np.ndarray) -> bytes:
        """Bytes of one uint8 (height, width, 3) image."""
        frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        if self._context.pix_fmt != "rgb24":
            frame = self._convert(frame)
        frame.pts, frame.time_base = self.frames, self._context.time_base
        self.frames += 1
        return b"".join(bytes(p) for p in self._context.encode(frame))


class Converter:
    """Changes the pixel format on the calling thread: PyAV's own threads cost more than the work and do not survive a fork."""

    def __init__(self, pixel_format: str) -> None:
        self._to = pixel_format
        self._reformatter: Any = VideoReformatter()
        # PyAV has the argument since 16.
        self._options: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 16 else {}

    def __call__(self, frame: Any) -> Any:
        return self._reformatter.reformat(frame, format=self._to, **self._options)

    def array(self, frame: Any) -> np.ndarray:
        """uint8 (height, width, 3)."""
        return self(frame).to_ndarray()


def decode_picture(data: bytes) -> np.ndarray:
    """A PNG or JPEG file → uint8 (height, width, 3).

    Raises:
        DataError: the bytes are neither.
    """
    name = "mjpeg" if data[:2] == b"\xff\xd8" else "png"
    try:
        context: Any = av.CodecContext.create(name, "r")
        context.options = {"max_pixels": str(MAX_PIXELS)}
        frames = [*context.decode(av.Packet(data)), *context.decode(None)]
        return Converter("rgb24").array(frames[0])
    except (VideoError, IndexError, ValueError) as e:
        raise DataError(f"an image of {len(data)} bytes cannot be decoded as {name}: {e}") from None


def write_mp4(packets: Path, target: Path, fps: int) -> int:
    """Put a raw H.264 stream into an MP4 file, frame i at i / fps seconds, without encoding again.

    Args:
        packets: Annex-B stream, as `FrameEncoder` made it.
        target: file to write.
        fps: frames per second.

    Returns:
        Number of frames written.

    Raises:
        OSError: the disk is full.
    """
    count = 0
    with av.open(str(packets), format="h264") as source, av.open(str(target), "w", format="mp4") as sink:
        out: Any = sink.add_stream_from_template(source.streams.video[0])
        out.time_base = Fraction(1, fps)
        for packet in source.demux(video=0):
            if packet.size == 0:
                continue
            packet.stream = out
            packet.time_base = Fraction(1, fps)
            packet.pts = packet.dts = count
            packet.duration = 1
            sink.mux(packet)
            count += 1
    return count


def video_facts(path: Path, fps: float) -> dict[str, Any]:
    """The "info" entry of a video feature, as LeRobot writes it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return {
            "video.height": stream.height,
            "video.width": stream.width,
            "video.codec": stream.codec.canonical_name,
            "video.pix_fmt": str(stream.codec_context.pix_fmt),
            "video.is_depth_map": False,
            "video.fps": int(fps),
            "video.channels": 3,
            "has_audio": False,
        }


def count_frames(path: Path) -> int:
    """Frames in a video file, without decoding them.

    Raises:
        DataError: the file is missing or truncated.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return stream.frames or sum(1 for p in container.demux(stream) if p.size)
    except (VideoError, IndexError, OSError) as e:
        raise DataError(f"{path} cannot be read as a video ({_reason(e)}); run sinew data repair") from None


class VideoReader:
    """Frames of one video file by number; used by one thread at a time.

    Args:
        path: video file.
        fps: frames per second; frame i is the one shown at i / fps.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._next, self._rgb = 0, Converter("rgb24")
        try:
            self._container: Any = av.open(str(path))
            self._stream = self._container.streams.video[0]
            self._context = self._stream.codec_context
            self._context.thread_count = 1
            self._context.options = {"max_pixels": str(MAX_PIXELS)}
            self._tick = self._stream.time_base
            self._per_tick = self._tick * Fraction(fps)
            self._frames: Iterator[Any] = self._container.decode(self._stream)
        except (VideoError, IndexError, OSError) as e:
            raise DataError(f"{path} cannot be read as a video ({_reason(e)}); run sinew data repair") from None
        # PyAV has the index of a file since 16; without it we look for a keyframe in every file as often as in our own.
        self._index: Any = getattr(self._stream, "index_entries", None)

    def read(self, numbers: Sequence[int]) -> dict[int, np.ndarray]:
        """Frames uint8 (height, width, 3) by number.

        Args:
            numbers: ascending, no duplicates.

        Raises:
            DataError: the file ends before one of them, or is damaged there; names it.
        """
        wanted: set[int] = set(numbers)
        found: dict[int, np.ndarray] = {}
        for number in numbers:
            if number in found:
                continue
            if not self._is_near(number):
                self._seek(number)
            if not self._scan(number, wanted, found):
                self._seek(0)
                if not self._scan(number, wanted, found):
                    self._seek(0)
                    raise DataError(f"{self.path} has no frame {number}; run sinew data check")
        return found

    def read_all(self, first: int, count: int) -> np.ndarray:
        """Frames first … first + count - 1 as one uint8 (count, height, width, 3) array, or fewer where the file ends.

        Raises:
            DataError: the file is damaged there.
        """
        if self._next != first:
            self._seek(first)
        height, width = self._context.height, self._context.width
        block = np.empty((count, height, width, 3), np.uint8)
        seen = 0
        for at, frame in self._decoded():
            if (frame.height, frame.width) != (height, width):
                raise DataError(f"{self.path} changes its size at frame {at}: {frame.width}x{frame.height} after {width}x{height}")
            if first <= at < first + count:
                block[at - first] = self._rgb.array(frame)
                seen = at - first + 1
            if at >= first + count - 1:
                break
        return block[:seen]

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _is_near(self, number: int) -> bool:
        """Whether decoding on from here reaches a frame sooner than a search for the keyframe before it."""
        if not self._next <= number:
            return False
        if number <= self._next + KEYFRAME_EVERY:
            return True
        if not self._index:
            return False
        at = self._index.search_timestamp(round(number / self._per_tick))
        return at >= 0 and self._index[at].timestamp * self._per_tick <= self._next

    def _scan(self, number: int, wanted: set[int], found: dict[int, np.ndarray]) -> bool:
        for at, frame in self._decoded():
            if at in wanted:
                found[at] = self._rgb.array(frame)
            if at >= number:
                break
        return number in found

    def _decoded(self) -> Iterator[tuple[int, Any]]:
        """(number, frame) from here on."""
        try:
            for frame in self._frames:
                if frame.pts is None:
                    continue
                at = round(frame.pts * self._per_tick)
                self._next = at + 1
                yield at, frame
        except VideoError as e:
            raise DataError(f"{self.path} is damaged after frame {self._next - 1} ({_reason(e)}); run sinew data check") from None

    def _seek(self, number: int) -> None:
        # A quarter of a frame early, so that rounding of the container's ticks never lands behind the frame.
        seconds = max(0.0, (number - 0.25) / self.fps)
        try:
            self._container.seek(int(seconds / self._tick), stream=self._stream, backward=True)
        except VideoError as e:
            raise DataError(f"{self.path} cannot be searched ({_reason(e)}); run sinew data repair") from None
        self._frames = self._container.decode(self._stream)
        self._next = number - KEYFRAME_EVERY if number else 0


class Videos:
    """Open video files, the most recently used kept open; for any number of threads, but not to be used across a fork."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self._idle: list[VideoReader] = []
        self._lock = threading.Lock()

    @contextmanager
    def reader(self, path: Path) -> Iterator[VideoReader]:
        """A reader of a file for this thread alone; two threads that read the same file have one each.

        Raises:
            DataError: the file is missing or is no video.
        """
        with self._lock:
            at = next((i for i, r in enumerate(self._idle) if r.path == path), None)
            reader = None if at is None else self._idle.pop(at)
        reader = reader or VideoReader(path, self.fps)
        try:
            yield reader
        except BaseException:
            reader.close()
            raise
        with self._lock:
            self._idle.append(reader)
            old = self._idle.pop(0) if len(self._idle) > OPEN_VIDEOS else None
        if old is not None:
            old.close()

    def close(self) -> None:
        """Close the files that no thread reads."""
        with self._lock:
            idle, self._idle = self._idle, []
        for reader in idle:
            reader.close()


def decoder_version() -> str:
    """What decoded pictures depend on besides the files: other versions may round colours otherwise."""
    return f"av {av.__version__}"


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]
