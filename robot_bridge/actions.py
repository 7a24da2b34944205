"""ROS 2 actions over any transport's services and topics: three services, a feedback topic and a status topic.

Source: the ROS 2 design article on actions, and rcl_action's names, QoS and rules for cancelling.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import numpy as np

from robot_bridge.dds import codec
from robot_bridge.dds.messages import blank, make
from robot_bridge.transport import (
    ABORTED,
    ACCEPTED,
    CANCELED,
    CANCELING,
    DEFAULT,
    EXECUTING,
    LATCHED,
    SUCCEEDED,
    UNKNOWN,
    Execute,
    Transport,
)
from sinew.errors import DataError, InputError

KEPT_RESULTS = 64
"""Finished goals whose results are kept for clients that ask late."""
ENDED = (SUCCEEDED, CANCELED, ABORTED)
NONE_CANCELING, UNKNOWN_GOAL, ALREADY_ENDED = 1, 2, 3
"""Return codes of action_msgs/CancelGoal."""
_log = logging.getLogger(__name__)


class SentGoal:
    """An accepted goal, seen from the client."""

    def __init__(self, client: ActionClient, goal_id: bytes, ended: Future[Any]) -> None:
        self.goal_id, self._client, self._ended = goal_id, client, ended

    @property
    def status(self) -> int:
        if self.done:
            return self._ended.result().status
        return self._client.statuses().get(self.goal_id, ACCEPTED)

    @property
    def done(self) -> bool:
        return self._ended.done()

    def result(self, timeout_s: float) -> tuple[int, Any]:
        try:
            response = self._ended.result(timeout_s)
        except FutureTimeoutError:
            raise InputError(f"the goal of action {self._client.action} did not end within {timeout_s:g} s") from None
        return response.status, response.result

    def cancel(self, timeout_s: float = 5.0) -> bool:
        return self._client.cancel(self.goal_id, timeout_s)


class ActionClient:
    """Sends goals to an action server over a transport.

    Args:
        transport: whose services and topics are used.
        action: its absolute name.
        kind: its type, for example "control_msgs/FollowJointTrajectory".
    """

    def __init__(self, transport: Transport, action: str, kind: str) -> None:
        self.action, self._kind = action, kind
        self._send = transport.client(f"{action}/_action/send_goal", f"{kind}_SendGoal")
        self._result = transport.client(f"{action}/_action/get_result", f"{kind}_GetResult")
        self._cancel = transport.client(f"{action}/_action/cancel_goal", "action_msgs/CancelGoal")
        self._status = transport.subscription(f"{action}/_action/status", "action_msgs/GoalStatusArray", LATCHED)
        self._feedback = transport.subscription(f"{action}/_action/feedback", f"{kind}_FeedbackMessage", DEFAULT)
        self._listeners: dict[bytes, Callable[[Any], None]] = {}
        self._statuses: dict[bytes, int] = {}
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        return self._send.ready and self._result.ready and self._cancel.ready

    def send_goal(self, goal: Any, *, feedback: Callable[[Any], None] | None = None, timeout_s: float = 5.0) -> SentGoal:
        deadline, goal_id = time.monotonic() + timeout_s, secrets.token_bytes(16)
        if feedback is not None:
            self._listen(goal_id, feedback)
        uuid = _uuid(goal_id)
        try:
            response = self._send.call(make(f"{self._kind}_SendGoal_Request", goal_id=uuid, goal=goal), timeout_s)
            if not response.accepted:
                raise InputError(f"action {self.action} rejected the goal; see what its server says")
            while not self._result.ready:
                if time.monotonic() > deadline:
                    raise InputError(f"action {self.action} accepted a goal but cannot be asked for its result")
                time.sleep(0.005)
            ended = self._result.submit(make(f"{self._kind}_GetResult_Request", goal_id=uuid))
        except InputError:
            self._listeners.pop(goal_id, None)
            raise
        ended.add_done_callback(lambda _: self._listeners.pop(goal_id, None))
        return SentGoal(self, goal_id, ended)

    def cancel(self, goal_id: bytes, timeout_s: float) -> bool:
        """Ask that a goal be given up; whether the server agrees."""
        response = self._cancel.call(make("action_msgs/CancelGoal_Request", goal_info=_goal_info(goal_id, 0)), timeout_s)
        return any(bytes(info.goal_id.uuid) == goal_id for info in response.goals_canceling)

    def statuses(self) -> dict[bytes, int]:
        """What the server last said of each goal."""
        for sample in self._status.take():
            try:
                told = codec.decode(sample.data, "action_msgs/GoalStatusArray")
            except DataError:
                continue
            self._statuses = {bytes(each.goal_info.goal_id.uuid): each.status for each in told.status_list}
        return self._statuses

    def _listen(self, goal_id: bytes, feedback: Callable[[Any], None]) -> None:
        self._listeners[goal_id] = feedback
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=f"feedback {self.action}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """Hand out feedback for as long as somebody listens."""
        while self._listeners:
            try:
                self._feedback.wait(0.1)
                samples = self._feedback.take()
            except Exception:  # the transport was closed
                return
            for sample in samples:
                try:
                    message = codec.decode(sample.data, f"{self._kind}_FeedbackMessage")
                except DataError as e:
                    _log.warning("action %s: %s", self.action, e)
                    continue
                if listener := self._listeners.get(bytes(message.goal_id.uuid)):
                    listener(message.feedback)


class ServedGoal:
    """A goal that is being executed."""

    def __init__(self, server: ActionServer, goal_id: bytes, request: Any) -> None:
        self.goal_id, self.request, self._server = goal_id, request, server
        self.status, self.accepted_ns = ACCEPTED, time.time_ns()
        self.ended: Future[Any] = Future()

    @property
    def cancel_requested(self) -> bool:
        return self.status == CANCELING

    def feedback(self, message: Any) -> None:
        self._server.tell_feedback(self.goal_id, message)


class ActionServer:
    """Executes goals over a transport, each in a thread of its own.

    Args:
        transport: whose services and topics are used.
        action: its absolute name.
        kind: its type.
        execute: carries out a goal; an exception aborts it.
        accept: which goals are taken; None for all.
    """

    def __init__(self, transport: Transport, action: str, kind: str, execute: Execute, accept: Callable[[Any], bool] | None) -> None:
        self.action, self._kind, self._execute, self._accept = action, kind, execute, accept
        self._goals: dict[bytes, ServedGoal] = {}
        self._lock, self._closed = threading.Lock(), False
        self._status = transport.publisher(f"{action}/_action/status", "action_msgs/GoalStatusArray", LATCHED)
        self._feedback = transport.publisher(f"{action}/_action/feedback", f"{kind}_FeedbackMessage", DEFAULT)
        self._servers = [
            transport.server(f"{action}/_action/send_goal", f"{kind}_SendGoal", self._take_goal),
            transport.server(f"{action}/_action/get_result", f"{kind}_GetResult", self._take_wish),
            transport.server(f"{action}/_action/cancel_goal", "action_msgs/CancelGoal", self._take_cancel),
        ]

    def close(self) -> None:
        """Take no more goals; those that are executed see `cancel_requested`."""
        self._closed = True
        for server in self._servers:
            server.close()
        with self._lock:
            for goal in self._goals.values():
                if goal.status not in ENDED:
                    goal.status = CANCELING

    def tell_feedback(self, goal_id: bytes, message: Any) -> None:
        """Publish feedback of a goal."""
        if not self._closed:
            self._feedback.send(make(f"{self._kind}_FeedbackMessage", goal_id=_uuid(goal_id), feedback=message))

    def _take_goal(self, request: Any) -> Any:
        goal_id = bytes(request.goal_id.uuid)
        goal = ServedGoal(self, goal_id, request.goal)
        accepted = goal_id not in self._goals and (self._accept is None or bool(self._accept(request.goal)))
        if accepted:
            with self._lock:
                self._goals[goal_id] = goal
                self._forget()
            threading.Thread(target=self._run, args=(goal,), name=f"goal {self.action}", daemon=True).start()
        return make(f"{self._kind}_SendGoal_Response", accepted=accepted, stamp=_time(goal.accepted_ns))

    def _take_wish(self, request: Any) -> Any:
        goal = self._goals.get(bytes(request.goal_id.uuid))
        return goal.ended if goal is not None else blank(f"{self._kind}_GetResult_Response", status=UNKNOWN)

    def _take_cancel(self, request: Any) -> Any:
        goal_id, before_ns = bytes(request.goal_info.goal_id.uuid), _nanoseconds(request.goal_info.stamp)
        everybody = not any(goal_id) and before_ns == 0
        with self._lock:
            meant = [g for g in self._goals.values() if everybody or g.goal_id == goal_id or (before_ns and g.accepted_ns <= before_ns)]
            running = [goal for goal in meant if goal.status not in ENDED]
            for goal in running:
                goal.status = CANCELING
        self._tell_status()
        code = 0 if running else UNKNOWN_GOAL if not meant and any(goal_id) else ALREADY_ENDED if meant else NONE_CANCELING
        goals = [_goal_info(goal.goal_id, goal.accepted_ns) for goal in running]
        return make("action_msgs/CancelGoal_Response", return_code=code, goals_canceling=goals)

    def _run(self, goal: ServedGoal) -> None:
        with self._lock:
            goal.status = EXECUTING if goal.status == ACCEPTED else goal.status
        self._tell_status()
        try:
            status, result = self._execute(goal)
        except Exception:
            _log.exception("a goal of action %s failed", self.action)
            status, result = ABORTED, blank(f"{self._kind}_Result")
        goal.status = status
        self._tell_status()
        goal.ended.set_result(make(f"{self._kind}_GetResult_Response", status=status, result=result))

    def _tell_status(self) -> None:
        with self._lock:
            if self._closed:
                return
            listed = [
                make("action_msgs/GoalStatus", goal_info=_goal_info(goal.goal_id, goal.accepted_ns), status=goal.status)
                for goal in self._goals.values()
            ]
            self._status.send(make("action_msgs/GoalStatusArray", status_list=listed))

    def _forget(self) -> None:
        ended = [goal_id for goal_id, goal in self._goals.items() if goal.status in ENDED]
        for goal_id in ended[:-KEPT_RESULTS]:
            del self._goals[goal_id]


def _uuid(goal_id: bytes) -> Any:
    return make("unique_identifier_msgs/UUID", uuid=np.frombuffer(goal_id, dtype=np.uint8))


def _time(stamp_ns: int) -> Any:
    return make("builtin_interfaces/Time", sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)


def _nanoseconds(stamp: Any) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def _goal_info(goal_id: bytes, stamp_ns: int) -> Any:
    return make("action_msgs/GoalInfo", goal_id=_uuid(goal_id), stamp=_time(stamp_ns))
