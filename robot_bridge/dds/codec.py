"""CDR by hand for the messages that are hot: joint states, commands, transforms and images. rosbags' codec does all others.

Byte for byte what ROS 2 sends: plain XCDR1, a 4-byte header, then every primitive aligned to its size from there on.
Both byte orders are read; little endian is written.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from robot_bridge.dds.definitions import VARIANTS
from robot_bridge.dds.messages import full_name, store, variant
from robot_bridge.images import decode_compressed
from sinew.errors import DataError

HEADER = b"\x00\x01\x00\x00"
"""CDR, little endian, no options."""
ENCODINGS = {"rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)), "bgra8": (4, (2, 1, 0)), "mono8": (1, (0, 0, 0))}
"""Image encodings that are read: channels, and which of them are red, green and blue."""


class JointState(NamedTuple):
    """sensor_msgs/JointState; an array is empty where the sender left it out."""

    stamp_ns: int
    frame_id: str
    names: tuple[str, ...]
    position: tuple[float, ...]
    velocity: tuple[float, ...]
    effort: tuple[float, ...]


class Writer:
    """Builds a CDR payload piece by piece."""

    def __init__(self) -> None:
        self.data = bytearray(HEADER)

    def align(self, size: int) -> None:
        """Pad to a multiple of `size`, counted from the end of the header."""
        self.data += bytes(-(len(self.data) - 4) % size)

    def number(self, form: str, value: float) -> None:
        """A primitive, by its struct letter."""
        self.align(struct.calcsize(form))
        self.data += struct.pack("<" + form, value)

    def text(self, value: str) -> None:
        """A string: length with the closing zero, then both."""
        raw = value.encode() + b"\0"
        self.number("I", len(raw))
        self.data += raw

    def stamp(self, stamp_ns: int) -> None:
        """builtin_interfaces/Time."""
        self.number("i", stamp_ns // 1_000_000_000)
        self.number("I", stamp_ns % 1_000_000_000)

    def doubles(self, values: Sequence[float]) -> int:
        """sequence<float64>; returns where its first element lies."""
        self.number("I", len(values))
        if len(values):
            self.align(8)
        start = len(self.data)
        self.data += struct.pack(f"<{len(values)}d", *values)
        return start


class Reader:
    """Takes a CDR payload apart.

    Raises:
        DataError: from every method when the payload is shorter than it claims.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < 4 or data[0] != 0 or data[1] not in (0, 1):
            raise DataError(f"a message begins with {bytes(data[:4]).hex()}, which is not plain CDR; the sender must use ROS 2's format")
        self.data, self.order, self.at = data, "<" if data[1] else ">", 4

    def number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self.at += -(self.at - 4) % size
        try:
            (value,) = struct.unpack_from(self.order + form, self.data, self.at)
        except struct.error:
            raise DataError("a message is shorter than it claims") from None
        self.at += size
        return value

    def count(self, size: int) -> int:
        """Length of a sequence whose elements take at least `size` bytes."""
        n = self.number("I")
        if n * size > len(self.data) - self.at:
            raise DataError(f"a message claims {n} elements where {len(self.data) - self.at} bytes are left")
        return n

    def text(self) -> str:
        n = self.count(1)
        raw = bytes(self.data[self.at : self.at + max(n - 1, 0)])
        self.at += n
        return raw.decode(errors="replace")

    def stamp_ns(self) -> int:
        return self.number("i") * 1_000_000_000 + self.number("I")

    def doubles(self) -> tuple[float, ...]:
        n = self.count(8)
        if n == 0:
            return ()
        self.at += -(self.at - 4) % 8
        try:
            values = struct.unpack_from(f"{self.order}{n}d", self.data, self.at)
        except struct.error:
            raise DataError("a message is shorter than it claims") from None
        self.at += 8 * n
        return values

    def octets(self) -> memoryview:
        """sequence<uint8>, without a copy."""
        n = self.count(1)
        self.at += n
        return memoryview(self.data)[self.at - n : self.at]


class JointStateEncoder:
    """Writes sensor_msgs/JointState of a fixed set of joints: names are laid out once, then only numbers are put in.

    Args:
        names: joints, in the order of the arrays.
        frame_id: frame of the header.
        effort: whether efforts are told.
    """

    def __init__(self, names: Sequence[str], frame_id: str = "", *, effort: bool = False) -> None:
        writer = Writer()
        writer.stamp(0)
        writer.text(frame_id)
        writer.number("I", len(names))
        for name in names:
            writer.text(name)
        self.first = writer.doubles([0.0] * len(names))
        """Where the first position lies in the payload."""
        self._velocity = writer.doubles([0.0] * len(names))
        self._effort = writer.doubles([0.0] * len(names) if effort else ())
        self._data = writer.data
        self._doubles = struct.Struct(f"<{len(names)}d")

    def encode(self, stamp_ns: int, position: Sequence[float], velocity: Sequence[float], effort: Sequence[float] = ()) -> bytearray:
        """The message with `position`, `velocity` and, where efforts are told, `effort` (n,). The next call uses the buffer again."""
        struct.pack_into("<iI", self._data, 4, stamp_ns // 1_000_000_000, stamp_ns % 1_000_000_000)
        self._doubles.pack_into(self._data, self.first, *position)
        self._doubles.pack_into(self._data, self._velocity, *velocity)
        if effort:
            self._doubles.pack_into(self._data, self._effort, *effort)
        return self._data


def decode_joint_state(data: bytes) -> JointState:
    """Read sensor_msgs/JointState.

    Raises:
        DataError: the payload is damaged, or an array's length is neither 0 nor that of the names.
    """
    reader = Reader(data)
    stamp_ns, frame_id = reader.stamp_ns(), reader.text()
    names = tuple(reader.text() for _ in range(reader.count(4)))
    state = JointState(stamp_ns, frame_id, names, reader.doubles(), reader.doubles(), reader.doubles())
    if any(len(values) not in (0, len(names)) for values in state[3:]):
        raise DataError(f"a joint state names {len(names)} joints but has {[len(v) for v in state[3:]]} values")
    return state


class JointStateDecoder:
    """Reads the joint states of one sender: while frame and names stay as they are, only the numbers are taken out."""

    def __init__(self) -> None:
        self._head = self._tail = b""
        self._state = JointState(0, "", (), (), (), ())
        self._numbers = struct.Struct("")

    def decode(self, data: bytes) -> JointState:
        """The same as `decode_joint_state`."""
        if self._head and len(data) >= self._numbers.size and data[:4] == HEADER and data[12 : 12 + len(self._head)] == self._head:
            seconds, nanoseconds, *numbers = self._numbers.unpack_from(data)
            n = len(self._state.names)
            if numbers[n] == n and numbers[-1] == 0:
                stamp_ns = seconds * 1_000_000_000 + nanoseconds
                position, velocity = tuple(numbers[:n]), tuple(numbers[n + 1 : -1])
                return JointState(stamp_ns, self._state.frame_id, self._state.names, position, velocity, ())
        return self._learn(data)

    def _learn(self, data: bytes) -> JointState:
        """Read in full, and remember the layout where it is the usual one: positions, velocities, no effort."""
        state = decode_joint_state(data)
        n = len(state.names)
        self._head, self._state = b"", state
        if n and len(state.position) == len(state.velocity) == n and not state.effort:
            first = JointStateEncoder(state.names, state.frame_id).first
            # a count and the padding that brings doubles to a multiple of 8 stand between the arrays
            self._numbers = struct.Struct(f"<4xiI{first - 12}x{n}dI4x{n}dI")
            if data[:4] == HEADER and len(data) >= self._numbers.size:
                self._head = bytes(data[12:first])
        return state


def encode_doubles(values: Sequence[float]) -> bytearray:
    """std_msgs/Float64MultiArray with an empty layout."""
    writer = Writer()
    writer.number("I", 0)
    writer.number("I", 0)
    writer.doubles(values)
    return writer.data


def decode_doubles(data: bytes) -> tuple[float, ...]:
    """The data of std_msgs/Float64MultiArray; the layout is passed over.

    Raises:
        DataError: the payload is damaged.
    """
    reader = Reader(data)
    for _ in range(reader.count(4)):
        reader.text()
        reader.at += -(reader.at - 4) % 4 + 8
    reader.number("I")
    return reader.doubles()


class Transform(NamedTuple):
    """geometry_msgs/TransformStamped: where `child` is in `parent`."""

    stamp_ns: int
    parent: str
    child: str
    pose: tuple[float, ...]
    """x, y, z in metres and quaternion w, x, y, z: the messages' own order is xyzw."""


def encode_transforms(transforms: Sequence[Transform]) -> bytearray:
    """tf2_msgs/TFMessage."""
    writer = Writer()
    writer.number("I", len(transforms))
    for transform in transforms:
        writer.stamp(transform.stamp_ns)
        writer.text(transform.parent)
        writer.text(transform.child)
        writer.align(8)
        x, y, z, qw, qx, qy, qz = transform.pose
        writer.data += struct.pack("<7d", x, y, z, qx, qy, qz, qw)
    return writer.data


def decode_transforms(data: bytes) -> list[Transform]:
    """Read tf2_msgs/TFMessage.

    Raises:
        DataError: the payload is damaged.
    """
    reader = Reader(data)
    transforms = []
    for _ in range(reader.count(64)):
        stamp_ns, parent, child = reader.stamp_ns(), reader.text(), reader.text()
        x, y, z, qx, qy, qz, qw = (reader.number("d") for _ in range(7))
        transforms.append(Transform(stamp_ns, parent, child, (x, y, z, qw, qx, qy, qz)))
    return transforms


def encode_image(image: np.ndarray, stamp_ns: int, frame_id: str) -> bytearray:
    """sensor_msgs/Image, rgb8, of (H, W, 3) uint8."""
    height, width, _ = image.shape
    writer = Writer()
    writer.stamp(stamp_ns)
    writer.text(frame_id)
    writer.number("I", height)
    writer.number("I", width)
    writer.text("rgb8")
    writer.number("B", 0)
    writer.number("I", 3 * width)
    writer.number("I", 3 * width * height)
    writer.data += np.ascontiguousarray(image).data.cast("B")
    return writer.data


class ImageEncoder:
    """Writes sensor_msgs/Image, rgb8, of one size: a camera's pixels are put into the message itself, once.

    Args:
        height: rows.
        width: columns.
        frame_id: frame of the header.
    """

    def __init__(self, height: int, width: int, frame_id: str) -> None:
        blank = encode_image(np.empty((height, width, 3), dtype=np.uint8), 0, frame_id)
        first = len(blank) - 3 * height * width
        self._data = blank + bytes(-len(blank) % 4)  # of a length that is sent without a copy
        self.pixels = np.frombuffer(self._data, dtype=np.uint8, offset=first, count=3 * height * width).reshape(height, width, 3)
        """(height, width, 3) uint8: the pixels of the next message, to be written in place."""

    def encode(self, stamp_ns: int, image: np.ndarray | None = None) -> bytearray:
        """The message with `image`, or with what stands in `pixels`. The buffer is used again by the next call."""
        struct.pack_into("<iI", self._data, 4, stamp_ns // 1_000_000_000, stamp_ns % 1_000_000_000)
        if image is not None:
            self.pixels[...] = image
        return self._data


def decode_image(data: bytes) -> tuple[int, str, np.ndarray]:
    """Read sensor_msgs/Image: stamp in ns, frame and (H, W, 3) uint8 RGB, a view of `data` where it is rgb8.

    Raises:
        DataError: the payload is damaged or of an encoding that is not known.
    """
    reader = Reader(data)
    stamp_ns, frame_id = reader.stamp_ns(), reader.text()
    height, width, encoding = reader.number("I"), reader.number("I"), reader.text()
    reader.number("B")
    step, raw = reader.number("I"), reader.octets()
    if encoding not in ENCODINGS:
        raise DataError(f"image encoding {encoding!r} is not known; known are {', '.join(ENCODINGS)}")
    channels, order = ENCODINGS[encoding]
    if not height or not width or step < width * channels or len(raw) < step * height:
        raise DataError(f"an image of {height} x {width} {encoding} has {len(raw)} bytes in rows of {step}")
    rows = np.frombuffer(raw, dtype=np.uint8, count=step * height).reshape(height, step)
    image = rows[:, : width * channels].reshape(height, width, channels)
    return stamp_ns, frame_id, image if order == (0, 1, 2) and channels == 3 else image[..., list(order)]


def decode_compressed_image(data: bytes) -> tuple[int, str, np.ndarray]:
    """Read sensor_msgs/CompressedImage: stamp in ns, frame and (H, W, 3) uint8 RGB.

    Raises:
        DataError: the payload or the picture in it is damaged.
    """
    reader = Reader(data)
    stamp_ns, frame_id, _ = reader.stamp_ns(), reader.text(), reader.text()
    return stamp_ns, frame_id, decode_compressed(reader.octets())


def encode(message: Any) -> bytes | memoryview:
    """Any message of rosbags' type store, by rosbags."""
    return store().serialize_cdr(message, message.__msgtype__)


def decode(data: bytes, message: str) -> Any:
    """A message by its name, by rosbags; those that another distribution lays out differently are read in its layout too.

    Raises:
        DataError: the payload is damaged or of another type.
    """
    name, problem = full_name(message), ""
    for distro in ("", *VARIANTS.get(name, ())):
        try:
            return (variant(name, distro) if distro else store()).deserialize_cdr(data, name)
        except Exception as e:  # rosbags' generated code raises whatever the bytes lead it to
            problem = problem or str(e) or type(e).__name__
    raise DataError(f"a {message} message cannot be read: {problem}")
