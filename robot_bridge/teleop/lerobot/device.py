"""Taking over with any teleoperator of LeRobot. `lerobot` is imported for devices here only.

Three kinds of actions are understood: positions of joints ("shoulder_pan.pos"), displacements of the tool ("delta_x") and poses of
a phone ("phone.pos"). The episode events of a teleoperator become words, and its intervention flag tells who is in control.
"""
# lerobot is an extra that type checkers may not find.
# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robot_bridge.takeover import Given
from robot_bridge.teleop.lerobot.config import LerobotConfig, Unit, mapped, values_of
from robot_bridge.teleop.mailbox import Mailbox
from sinew.errors import InputError, MissingDependency, unknown
from sinew.se3 import xyzw_to_wxyz

RATE_HZ = 60.0
MAX_AGE_S = 0.2
TRIES = 4
"""To connect it: LeRobot gives up where a single answer of a servo comes late."""
LOST_S, REOPEN_S = 1.0, 1.0
"""How long it may fail before it is gone, and between two tries to find it again."""
LETTING_GO_S = 0.5
"""Whoever moves by steps is still in control this long after the last."""
STEPS = ("delta_x", "delta_y", "delta_z")
PHONE = "phone.pos"
NORM: dict[str, Unit] = {"degrees": "deg", "range_m100_100": "range"}
"""LeRobot's MotorNormMode → unit."""
WAIT_S = 0.002
"""How long a read of a serial port sleeps; LeRobot leaves it spinning, which takes the interpreter from the control loop."""


class LerobotTakeover(Mailbox):
    """A teleoperator of LeRobot.

    Args:
        name: as LeRobot registers it, "so101_leader".
        config: its settings and what its actions mean.
        joints: of each arm of the robot, in the robot's order.
        limits: {joint: (low, high)} rad.

    Raises:
        InputError: no such teleoperator, settings that it does not take, it cannot be connected or is not calibrated, or its
            actions do not fit the robot.
        MissingDependency: lerobot is not installed, or what the teleoperator needs besides.
    """

    def __init__(
        self, name: str, config: LerobotConfig, joints: Sequence[Sequence[str]], limits: Mapping[str, tuple[float, float]]
    ) -> None:  # fmt: skip
        super().__init__(MAX_AGE_S)
        self._name, self._config, self._limits = name, config, limits
        self._device = made(name, config)
        self._connect()
        self._keys = _keys(self._device.action_features)
        self._kind = _kind(self._keys)
        self._arms = mapped(config, name, self._keys, joints) if self._kind == "joints" else []
        self._units = self._told_units()
        self.tells_hold = self._kind in ("pose", "steps") or hasattr(self._device, "get_teleop_events")
        """Whether it says by itself when the person is in control."""
        self._said: set[str] = set()
        self._moved_s = -1e9
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lerobot {name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See `Takeover.close`."""
        self._quit.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # it may be gone
            self._device.disconnect()

    # ------------------------------------------------------------ finding it

    def _connect(self, tries: int = TRIES) -> None:
        try:
            calibrated = self._greet()
        except ImportError as e:
            raise MissingDependency(f"LeRobot's {self._name} needs {e.name or e}: pip install it beside lerobot") from None
        except Exception as e:  # whatever the device's library raises
            with contextlib.suppress(Exception):  # half of it may be open
                self._device.disconnect()
            if tries > 1:
                self._connect(tries - 1)
                return
            raise InputError(f"LeRobot's {self._name} cannot be connected ({_line(e)})") from None
        if not calibrated:
            self._device.disconnect()
            raise InputError(f"LeRobot's {self._name} is not calibrated: run lerobot-calibrate --teleop.type={self._name} first")

    def _greet(self) -> bool:
        """Connect it without asking the person anything; whether it is calibrated."""
        connect = self._device.connect
        connect(**({"calibrate": False} if "calibrate" in inspect.signature(connect).parameters else {}))
        for port in _ports(self._device):
            port.timeout = WAIT_S
        calibrated = self._device.is_calibrated
        return bool(calibrated() if callable(calibrated) else calibrated)

    def _told_units(self) -> dict[str, Unit]:
        """{key: unit} of the joints, where the file says none.

        Raises:
            InputError: nobody says.
        """
        units: dict[str, Unit] = {}
        norms = dict(_norms(self._device))
        for arm in self._arms:
            for joint, part in arm.joints.items():
                unit = part.unit or norms.get(part.key)
                if unit is None:
                    raise InputError(
                        f"nobody says what {part.key} of {self._name} is told in: give 'unit' of joint {joint} (deg, rad or range)"
                    )
                units[part.key] = unit
        return units

    # ------------------------------------------------------------ reading it

    def _run(self) -> None:
        heard_s, lost = time.monotonic(), False
        while not self._quit.wait(REOPEN_S if lost else 1 / RATE_HZ):
            try:
                if lost:
                    with contextlib.suppress(Exception):  # what is gone cannot always be closed
                        self._device.disconnect()
                    self._connect(1)
                self._take(self._device.get_action())
            except Exception as e:  # whatever the device's library raises, it is not to be read
                if not lost and time.monotonic() - heard_s > LOST_S:
                    lost = True
                    self.lose(f"LeRobot's {self._name} is gone ({_line(e)})")
                continue
            if lost:
                self.lose("")
            heard_s, lost = time.monotonic(), False

    def _take(self, action: Mapping[str, Any]) -> None:
        """What the teleoperator says now."""
        in_control, given = self._events(), self._asked(action)
        if self._kind == "steps":  # LeRobot's keyboard forgets what was pressed before it says whether anything was
            now_s = time.monotonic()
            if given is not None and (any(given.values) or given.open is not None):
                self._moved_s = now_s
            in_control = in_control or now_s - self._moved_s < LETTING_GO_S
        if given is None or not in_control:
            self.release()
        else:
            self.put(given)

    def _events(self) -> bool:
        """Pass on its events as words; whether it says that the person is in control."""
        if not hasattr(self._device, "get_teleop_events"):
            return self._kind != "steps"
        told = {getattr(key, "value", key): bool(value) for key, value in self._device.get_teleop_events().items()}
        now = {name for name, value in told.items() if value}
        fresh, self._said = now - self._said, now
        if "rerecord_episode" in fresh:
            self.say("discard")
        elif "success" in fresh:
            self.say("success")
        elif fresh & {"terminate_episode", "failure"}:
            self.say("failure")
        return told.get("is_intervention", False)

    def _asked(self, action: Mapping[str, Any]) -> Given | None:
        if self._kind == "joints":
            parts = []
            for arm in self._arms:
                values = values_of(arm, action, self._units, self._limits)
                share = arm.opening.share(float(action[arm.grip])) if arm.grip else None
                parts.append(Given(tuple(values), open=share, arm=arm.arm, kind="joints"))
            return Given(parts[0].values, open=parts[0].open, arm=parts[0].arm, kind="joints", also=tuple(parts[1:]))
        if self._kind == "pose":
            if not action.get("phone.enabled"):
                return None
            rotation = xyzw_to_wxyz(action["phone.rot"].as_quat())
            return Given((*map(float, action[PHONE]), *map(float, rotation)), self._config.frame, kind="pose")
        shares = [max(-1.0, min(1.0, float(action[key]))) for key in STEPS]
        grip = action.get("gripper")  # 0 close, 1 stay, 2 open
        return Given((*shares, 0.0, 0.0, 0.0), self._config.frame, None if grip is None or grip == 1 else float(grip > 1))


def made(name: str, config: LerobotConfig) -> Any:
    """A teleoperator of LeRobot, not connected.

    Raises:
        InputError: no such teleoperator, or settings that it does not take.
        MissingDependency: lerobot is not installed, or what the teleoperator needs besides.
    """
    try:
        import draccus
        import lerobot.teleoperators as teleoperators
        from lerobot.teleoperators import TeleoperatorConfig, make_teleoperator_from_config
        from lerobot.utils.import_utils import register_third_party_plugins
    except ImportError as e:
        raise MissingDependency(f"teleoperators of LeRobot need lerobot: pip install 'sinew[lerobot]' ({e})") from None
    for module in pkgutil.iter_modules(teleoperators.__path__, teleoperators.__name__ + "."):
        if module.ispkg:
            with contextlib.suppress(ImportError):  # its own dependencies are not here
                importlib.import_module(module.name)
    register_third_party_plugins()
    for package in config.packages:
        try:
            importlib.import_module(package)
        except ImportError as e:
            raise InputError(f"package {package!r} of --teleop-config cannot be imported: {e}") from None
    known = TeleoperatorConfig.get_known_choices()
    if name not in known:
        raise unknown("teleoperator of LeRobot", name, known)
    try:
        return make_teleoperator_from_config(draccus.decode(known[name], config.settings))
    except ImportError as e:
        raise MissingDependency(f"LeRobot's {name} needs {e.name or e}: pip install it beside lerobot") from None
    except Exception as e:  # draccus and the class itself raise their own kinds
        raise InputError(f"LeRobot's {name} does not take settings {config.settings}: {_line(e)}") from None


def _keys(features: Mapping[str, Any]) -> list[str]:
    """Names of the elements of an action, whichever of LeRobot's two ways tells them."""
    names = features.get("names", features)
    return list(names)


def _kind(keys: Sequence[str]) -> str:
    """How actions with such keys move a robot.

    Raises:
        InputError: it cannot be told.
    """
    if PHONE in keys:
        return "pose"
    if all(key in keys for key in STEPS):
        return "steps"
    if any(key.endswith(".pos") for key in keys):
        return "joints"
    raise InputError(
        f"a teleoperator that says {', '.join(keys) or 'nothing by name'} moves no arm: it must say joints (NAME.pos), {STEPS} or a pose"
    )


def _parts(device: Any) -> Iterator[tuple[str, Any]]:
    """The device and the arms that it is made of, with how its actions call them."""
    yield "", device
    for side in ("left", "right"):
        if (arm := getattr(device, f"{side}_arm", None)) is not None:
            yield f"{side}_", arm


def _norms(device: Any) -> Iterator[tuple[str, Unit]]:
    for prefix, part in _parts(device):
        for name, motor in getattr(getattr(part, "bus", None), "motors", {}).items():
            norm = getattr(motor.norm_mode, "value", "")
            if norm in NORM:
                yield f"{prefix}{name}.pos", NORM[norm]


def _ports(device: Any) -> Iterator[Any]:
    for _, part in _parts(device):
        serial = getattr(getattr(getattr(part, "bus", None), "port_handler", None), "ser", None)
        if serial is not None:
            yield serial


def _line(e: Exception) -> str:
    text = " ".join(str(e).split())
    return f"{type(e).__name__}: {text[:200]}" if text else type(e).__name__
