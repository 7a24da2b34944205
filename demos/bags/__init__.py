"""ROS 2 bags as files: MCAP and SQLite read in constant memory, MCAP written so that a crash loses moments.

Messages are bytes here; what they mean is told by the contract of a robot, in `robot_bridge`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demos.bags.bag import Bag, is_bag
    from demos.bags.mending import mend
    from demos.bags.topic import BagMessage, Topic
    from demos.bags.writer import BagWriter

__all__ = ["Bag", "BagMessage", "BagWriter", "Topic", "is_bag", "mend"]

_HOME = {"Bag": "bag", "BagMessage": "topic", "BagWriter": "writer", "Topic": "topic", "is_bag": "bag", "mend": "mending"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
