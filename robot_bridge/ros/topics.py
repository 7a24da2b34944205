"""Publishers and subscriptions of rclpy that carry CDR bytes."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from robot_bridge.dds import codec
from robot_bridge.transport import Sample


class Publisher:
    """Writes CDR payloads to a topic."""

    def __init__(self, publisher: Any, topic: str) -> None:
        self._publisher, self.topic = publisher, topic

    def write(self, payload: bytes | bytearray | memoryview) -> None:
        self._publisher.publish(payload if isinstance(payload, bytes) else bytes(payload))

    def send(self, message: Any) -> None:
        self.write(codec.encode(message))

    @property
    def subscribers(self) -> int:
        return self._publisher.get_subscription_count()


class Subscription:
    """Keeps what the executor's thread hands over until it is taken; the control thread only ever touches a queue.

    Args:
        topic: its absolute name.
        depth: samples that are kept; older ones are dropped.
    """

    def __init__(self, topic: str, depth: int) -> None:
        self.topic = topic
        self._samples: deque[Sample] = deque(maxlen=depth)
        self._arrived = threading.Condition()
        self._closed = False
        self.subscription: Any = None
        """rclpy's own, once it is made."""

    def put(self, data: bytes, info: Any) -> None:
        """Called by the executor with the raw payload and, from Iron on, what is known of it."""
        stamp_ns = info.get("source_timestamp", 0) if isinstance(info, dict) else getattr(info, "source_timestamp", 0)
        with self._arrived:
            self._samples.append(Sample(data, stamp_ns or time.time_ns()))
            self._arrived.notify_all()

    def put_plain(self, data: bytes) -> None:
        """As `put`, for Humble, which tells no stamps: that of the receipt stands in."""
        self.put(data, {})

    def take(self, most: int = 100) -> list[Sample]:
        with self._arrived:
            return [self._samples.popleft() for _ in range(min(most, len(self._samples)))]

    def newest(self) -> Sample | None:
        with self._arrived:
            sample = self._samples[-1] if self._samples else None
            self._samples.clear()
            return sample

    def wait(self, timeout_s: float) -> bool:
        with self._arrived:
            return self._arrived.wait_for(lambda: bool(self._samples) or self._closed, timeout_s) and bool(self._samples)

    def close(self) -> None:
        """Wake whoever waits."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()

    @property
    def publishers(self) -> int:
        return self.subscription.get_publisher_count()
