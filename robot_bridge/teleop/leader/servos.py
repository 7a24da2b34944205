"""A bus of servos on a serial port, whoever makes them: who is there, and at what angle.

The two makers' libraries have the same shape and the same habit of spinning while they wait for an answer, which would take the
interpreter from the control loop; a timeout on the port makes them sleep instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob
from importlib import import_module
from math import tau
from pathlib import Path
from typing import Any

from sinew.errors import InputError, SinewError, unknown

WAIT_S = 0.002
"""How long a read of the port sleeps at most before the library looks at its own clock."""
TRIES = 3
"""For a single servo to answer: the libraries wait 34 ms only."""
COUNTS = 4096
"""Positions of a turn, of all models that are known here."""
HINT = (
    "allow it with 'sudo usermod -aG dialout $USER' and a new login, or with a udev rule such as "
    'KERNEL=="ttyACM*", MODE="0666" in /etc/udev/rules.d'
)


class BusFault(SinewError):  # noqa: N818
    """The bus does not answer as it should, this time."""


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What is particular to one maker's servos."""

    name: str
    library: Any
    """Its module: PortHandler, PacketHandler, GroupSyncRead, COMM_SUCCESS."""
    protocol: float
    """What its PacketHandler wants."""
    models: dict[str, int]
    """Name → the number that such a servo tells when it is asked."""
    torque: int
    """Register that switches the motor on, 1 byte."""
    position: tuple[int, int]
    """Register of the angle, and its bytes."""
    decode: Callable[[int], int]
    """That register as a signed number of counts."""


MAKERS = {"dynamixel": "robot_bridge.teleop.leader.dynamixel", "feetech": "robot_bridge.teleop.leader.feetech"}
"""Module per maker; each has a function `maker`."""


def maker_of(name: str) -> Maker:
    """The maker called "dynamixel" or "feetech".

    Raises:
        InputError: there is no such maker.
        MissingDependency: its library is not installed.
    """
    if name not in MAKERS:
        raise unknown("maker of servos", name, MAKERS)
    return import_module(MAKERS[name]).maker()


class ServoBus:
    """The servos on a port.

    Args:
        maker: of the servos.
        port: device of the adapter, for example "/dev/ttyACM0".
        baud: bits per second.

    Raises:
        InputError: the port is not there, may not be used, is used by somebody else, or has no such rate.
    """

    def __init__(self, maker: Maker, port: str, baud: int) -> None:
        self.maker, self.port, self.baud = maker, port, baud
        self._handler = maker.library.PacketHandler(maker.protocol)
        self._serial = _opened(maker, port, baud)
        self._groups: dict[tuple[int, ...], Any] = {}

    def ping(self, servo: int) -> int | None:
        """The model's number that a servo tells; None where it does not answer.

        Raises:
            BusFault: the port is gone.
        """
        for _ in range(TRIES):
            number, result, _ = self._safely(lambda: self._handler.ping(self._serial, servo))
            if result == self.maker.library.COMM_SUCCESS:
                return int(number)
        return None

    def angles(self, servos: Sequence[int]) -> list[float]:
        """Angles of servos in rad, all asked at once.

        Raises:
            BusFault: one of them did not answer, or the port is gone.
        """
        key, (address, length) = tuple(servos), self.maker.position
        if key not in self._groups:
            group = self.maker.library.GroupSyncRead(self._serial, self._handler, address, length)
            for servo in key:
                group.addParam(servo)
            self._groups[key] = group
        group = self._groups[key]
        result = self._safely(group.txRxPacket)
        if result != self.maker.library.COMM_SUCCESS:
            silent = next((servo for servo in key if not group.data_dict[servo]), key[0])
            raise BusFault(f"{self.port}: no answer of servo {silent}")
        return [self.maker.decode(group.getData(servo, address, length)) * tau / COUNTS for servo in key]

    def release(self, servo: int) -> None:
        """Switch a motor off, so that a hand can turn it.

        Raises:
            BusFault: it did not answer.
        """
        for _ in range(TRIES):
            result, _ = self._safely(lambda: self._handler.write1ByteTxRx(self._serial, servo, self.maker.torque, 0))
            if result == self.maker.library.COMM_SUCCESS:
                return
        raise BusFault(f"{self.port}: servo {servo} did not let its motor be switched off")

    def check(self, servos: dict[int, str]) -> None:
        """See that servos {id: model} are there and are what they should be.

        Raises:
            InputError: one is missing or another one, and which answer instead; or its model is not known.
        """
        for servo, model in servos.items():
            if model not in self.maker.models:
                raise unknown(f"model of {self.maker.name} servo", model, self.maker.models)
            number = self.ping(servo)
            if number is None:
                others = [i for i in servos if i != servo and self.ping(i) is not None]
                there = f"servos {', '.join(map(str, others))} do" if others else f"nor does any other of {', '.join(map(str, servos))}"
                why = "its id or its cable" if others else f"the power of the arm, and whether it speaks at {self.baud} baud"
                raise InputError(f"servo {servo} on {self.port} does not answer ({there}): check {why}")
            if number != self.maker.models[model]:
                names = {n: name for name, n in self.maker.models.items()}
                raise InputError(
                    f"servo {servo} on {self.port} is {names.get(number, f'a model of number {number}')}, and {model} is expected: "
                    f"calibrate this arm anew with 'sinew calibrate leader', or plug in the one that was calibrated"
                )

    def close(self) -> None:
        """Give the port back."""
        with contextlib.suppress(OSError):  # it may be gone
            self._serial.closePort()

    def _safely(self, ask: Callable[[], Any]) -> Any:
        self._serial.is_using = False  # the libraries leave it set where a port fails
        try:
            self._serial.ser.reset_input_buffer()  # an answer that came late is the answer to another question
            return ask()
        except (OSError, termios.error, ValueError, TypeError, IndexError) as e:  # the port is gone, or an answer was no packet
            raise BusFault(f"{self.port}: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else 'it is gone'}") from None


def _opened(maker: Maker, port: str, baud: int) -> Any:
    """The library's port, opened for us alone.

    Raises:
        InputError: it cannot be opened.
    """
    if not Path(port).exists():
        there = sorted([*glob("/dev/serial/by-id/*"), *glob("/dev/ttyUSB*"), *glob("/dev/ttyACM*")])
        raise InputError(f"no port {port}: {'there are ' + ', '.join(there) if there else 'no serial port is there; plug the arm in'}")
    if not os.access(port, os.R_OK | os.W_OK):
        raise InputError(f"port {port} may not be used by you: {HINT}")
    handler = maker.library.PortHandler(port)
    handler.baudrate = baud
    if handler.getCFlagBaud(baud) <= 0:
        raise InputError(f"{baud} baud is no rate of these servos: 1000000 and 57600 are usual")
    try:
        handler.openPort()
        handler.ser.timeout = WAIT_S
        handler.ser.exclusive = True
    except (OSError, termios.error) as e:  # pyserial's are among them
        if isinstance(e, OSError) and e.errno == errno.EACCES:
            raise InputError(f"port {port} may not be used by you: {HINT}") from None
        raise InputError(f"port {port} cannot be opened ({str(e).splitlines()[0]}): is another program using it?") from None
    return handler
