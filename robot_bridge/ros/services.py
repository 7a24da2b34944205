"""Services of rclpy with messages of rosbags' types, so that callers need not know which transport they use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from robot_bridge.dds import codec
from robot_bridge.dds.messages import parts
from robot_bridge.ros import door
from robot_bridge.transport import Handler, answer_in_time
from sinew.errors import InputError

if TYPE_CHECKING:
    from robot_bridge.ros.node import Node

_log = logging.getLogger(__name__)


def to_ros(message: Any, kind: Any) -> Any:
    """A message of rosbags' types as one of rclpy's class `kind`."""
    return door.deserialize_message(bytes(codec.encode(message)), kind)


def from_ros(message: Any, name: str) -> Any:
    """A message of rclpy as one of rosbags' types."""
    return codec.decode(bytes(door.serialize_message(message)), name)


class Client:
    """Asks a service."""

    def __init__(self, node: Node, service: str, kind: str) -> None:
        self.service, self._node = service, node
        self._response = parts(kind)[1]
        self._type = door.service_class(kind)
        self._client = node.ros.create_client(self._type, service, callback_group=node.group)
        self._checked = False

    @property
    def ready(self) -> bool:
        if not self._client.service_is_ready():
            return False
        self._check()
        return True

    def submit(self, request: Any) -> Future[Any]:
        self._check()
        ended: Future[Any] = Future()
        asked = self._client.call_async(to_ros(request, self._type.Request))

        def done(future: Any) -> None:
            if not ended.set_running_or_notify_cancel():
                return
            try:
                ended.set_result(from_ros(future.result(), self._response))
            except Exception as e:
                ended.set_exception(e)

        asked.add_done_callback(done)
        return ended

    def call(self, request: Any, timeout_s: float = 5.0) -> Any:
        return answer_in_time(self, request, timeout_s, f"domain {self._node.domain}")

    def _check(self) -> None:
        """Refuse a server of another vendor's DDS, once: it would look ready and never answer."""
        if not self._checked:
            if problem := self._node.refusal(self.service):
                raise InputError(problem)
            self._checked = True


class Server:
    """Answers a service in a thread of its own; the executor only takes requests and sends responses."""

    def __init__(self, node: Node, service: str, kind: str, handler: Handler) -> None:
        self.service, self._node, self._handler = service, node, handler
        self._request = parts(kind)[0]
        self._type = door.service_class(kind)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"service {service}")
        self._server = node.ros.create_service(self._type, service, self._serve, callback_group=node.group)

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._node.drop(self._server)

    async def _serve(self, request: Any, response: Any) -> Any:
        """Wait, without holding up the executor, for the handler's thread."""
        answered = door.Future(executor=self._node.executor)
        asked = from_ros(request, self._request)
        try:
            self._worker.submit(self._handle, asked, answered.set_result)
        except RuntimeError:  # closed meanwhile
            return response
        answer = await answered
        return response if answer is None else to_ros(answer, self._type.Response)

    def _handle(self, request: Any, answer: Callable[[Any], None]) -> None:
        try:
            response = self._handler(request)
        except Exception:
            _log.exception("service %s failed; its client gets an empty answer", self.service)
            answer(None)
            return
        if isinstance(response, Future):
            response.add_done_callback(lambda done: answer(None if done.cancelled() else done.result()))
        else:
            answer(response)
