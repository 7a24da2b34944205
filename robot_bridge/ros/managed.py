"""A node with a life cycle, parameters and diagnostics around any piece of work.

The executor has a thread of its own, and the work is expected to run elsewhere: nothing that ROS 2 asks of the node waits
for a control loop, nor the loop for it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from robot_bridge.dds.messages import blank, make
from robot_bridge.ros import door
from robot_bridge.ros.child import Health
from robot_bridge.ros.node import Node
from sinew.errors import SinewError

DIAGNOSTICS_HZ = 1.0
_log = logging.getLogger(__name__)


class Work(Protocol):
    """What a managed node manages; a `SinewError` refuses a transition, with its one line."""

    def configure(self, parameters: Mapping[str, Any]) -> None:
        """Check and load; nothing moves yet."""
        ...

    def activate(self) -> None:
        """Start; must return soon."""
        ...

    def deactivate(self) -> None:
        """Stop safely; must return soon."""
        ...

    def health(self) -> Health:
        """How it does, at once."""
        ...


class ManagedNode:
    """A life-cycle node around `work`.

    Args:
        name: node name.
        work: what is configured, activated and deactivated.
        parameters: names and default values; read anew whenever the node is configured.
        options: `domain` and `reach` of `robot_bridge.ros.node.Node`.
    """

    def __init__(self, name: str, work: Work, parameters: Mapping[str, Any], **options: Any) -> None:
        self._work, self._parameters = work, tuple(parameters)
        node = self

        class Managed(door.LifecycleNode):
            def on_configure(self, state: Any) -> Any:
                return node._try("configure", lambda: work.configure({n: self.get_parameter(n).value for n in node._parameters}))

            def on_activate(self, state: Any) -> Any:
                return node._try("activate", work.activate)

            def on_deactivate(self, state: Any) -> Any:
                return node._try("deactivate", work.deactivate)

            def on_cleanup(self, state: Any) -> Any:
                return door.TransitionCallbackReturn.SUCCESS

            def on_shutdown(self, state: Any) -> Any:
                return node._try("deactivate", work.deactivate)

        self.node = Node(name, kind=Managed, **options)
        for parameter, value in parameters.items():
            self.node.ros.declare_parameter(parameter, value)
        self._diagnostics = self.node.publisher("/diagnostics", "diagnostic_msgs/DiagnosticArray")
        self.node.ros.create_timer(1.0 / DIAGNOSTICS_HZ, self._tell, callback_group=door.MutuallyExclusiveCallbackGroup())

    def close(self) -> None:
        """Stop the work and leave the graph."""
        self._work.deactivate()
        self.node.close()

    def _try(self, what: str, do: Any) -> Any:
        try:
            do()
        except SinewError as e:
            self.node.ros.get_logger().error(f"cannot {what}: {e}")
            return door.TransitionCallbackReturn.FAILURE
        except Exception:
            _log.exception("a life-cycle node failed to %s", what)
            return door.TransitionCallbackReturn.ERROR
        return door.TransitionCallbackReturn.SUCCESS

    def _tell(self) -> None:
        health = self._work.health()
        status = make(
            "diagnostic_msgs/DiagnosticStatus",
            level=health.level,
            name=f"{self.node.name}: work",
            message=health.message,
            hardware_id="",
            values=[make("diagnostic_msgs/KeyValue", key=key, value=value) for key, value in health.values.items()],
        )
        stamp = self.node.ros.get_clock().now().nanoseconds
        time = make("builtin_interfaces/Time", sec=stamp // 1_000_000_000, nanosec=stamp % 1_000_000_000)
        header = make("std_msgs/Header", stamp=time, frame_id="")
        self._diagnostics.send(blank("diagnostic_msgs/DiagnosticArray", header=header, status=[status]))
