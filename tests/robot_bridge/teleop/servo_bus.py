"""A bus of servos on a real pseudo-terminal, which speaks Dynamixel's protocol 2.0 or Feetech's, written from their manuals."""

import contextlib
import json
import math
import os
import pty
import select
import sys
import termios
import threading
import tty

PING, READ, WRITE, SYNC_READ = 1, 2, 3, 0x82


class ServoBus:
    """Servos {id: model's number}; `angles` in rad may be changed at any time, `mute` are those that say nothing.

    Args:
        maker: "dynamixel" or "feetech".
        servos: {id: number}.
        baud: at any other rate nobody understands anything.
    """

    def __init__(self, maker, servos, baud=termios.B1000000):
        self.maker, self.servos, self.baud = maker, dict(servos), baud
        self.angles = dict.fromkeys(servos, 0.0)
        self.torque = dict.fromkeys(servos, 1)
        self.memory = {servo: bytearray(b"\xff\x0f".rjust(13, b"\0").ljust(256, b"\0")) for servo in servos}
        """Registers of Feetech's that are only kept; the largest angle, at 11, is 4095."""
        self.mute, self.noise, self.asked = set(), b"", 0
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self):
        """Pull the plug."""
        if not self._quit.is_set():
            self._quit.set()
            self._thread.join()
            for fd in (self._master, self._slave):
                os.close(fd)

    def _run(self):
        heard = b""
        parse = self._dynamixel if self.maker == "dynamixel" else self._feetech
        while not self._quit.is_set():
            if not select.select([self._master], [], [], 0.02)[0]:
                continue
            with contextlib.suppress(OSError):
                heard += os.read(self._master, 1024)
            if termios.tcgetattr(self._slave)[4] != self.baud:
                heard = b""
                continue
            while (taken := parse(heard)) is not None:
                length, answer = taken
                heard = heard[length:]
                if answer:
                    self.asked += 1
                    os.write(self._master, self.noise + answer)

    def _registers(self, servo, address, length):
        model = self.servos[servo].to_bytes(2, "little")
        counts = round(self.angles[servo] * 4096 / math.tau)
        if self.maker == "dynamixel":
            table = {0: model, 132: (counts & 0xFFFFFFFF).to_bytes(4, "little"), 64: bytes([self.torque[servo]])}
        else:
            signed = abs(counts) | (0x8000 if counts < 0 else 0)
            kept = bytes(self.memory[servo][address : address + length])
            table = {address: kept, 3: model, 56: signed.to_bytes(2, "little"), 40: bytes([self.torque[servo]])}
        return table.get(address, bytes(length))[:length].ljust(length, b"\0")

    def _answers(self, servo):
        return servo in self.servos and servo not in self.mute

    # ------------------------------------------------------------ FF FF FD 00 id length(2) instruction parameters crc(2)

    def _dynamixel(self, heard):
        if len(heard) < 7 or len(heard) < (whole := 7 + int.from_bytes(heard[5:7], "little")):
            return None
        servo, instruction, parameters = heard[4], heard[7], heard[8 : whole - 2]
        assert heard[:4] == b"\xff\xff\xfd\x00" and crc16(heard[: whole - 2]).to_bytes(2, "little") == heard[whole - 2 : whole]
        words = [int.from_bytes(parameters[i : i + 2], "little") for i in (0, 2)]
        answer = b""
        if instruction == SYNC_READ:
            answer = b"".join(self._status2(s, self._registers(s, *words)) for s in parameters[4:] if self._answers(s))
        elif self._answers(servo):
            if instruction == WRITE and words[0] == 64:
                self.torque[servo] = parameters[2]
            data = {PING: self.servos[servo].to_bytes(2, "little") + b"\x2d", WRITE: b""}
            answer = self._status2(servo, data[instruction] if instruction in data else self._registers(servo, *words))
        return whole, answer

    @staticmethod
    def _status2(servo, data):
        packet = b"\xff\xff\xfd\x00" + bytes([servo]) + (len(data) + 4).to_bytes(2, "little") + b"\x55\x00" + data
        return packet + crc16(packet).to_bytes(2, "little")

    # ------------------------------------------------------------ FF FF id length instruction parameters checksum

    def _feetech(self, heard):
        if len(heard) < 4 or len(heard) < (whole := 4 + heard[3]):
            return None
        servo, instruction, parameters = heard[2], heard[4], heard[5 : whole - 1]
        assert heard[:2] == b"\xff\xff" and heard[whole - 1] == ~sum(heard[2 : whole - 1]) & 0xFF
        answer = b""
        if instruction == SYNC_READ:
            answer = b"".join(self._status1(s, self._registers(s, *parameters[:2])) for s in parameters[2:] if self._answers(s))
        elif self._answers(servo):
            if instruction == WRITE:
                self.memory[servo][parameters[0] : parameters[0] + len(parameters) - 1] = parameters[1:]
                self.torque[servo] = self.memory[servo][40] if parameters[0] == 40 else self.torque[servo]
            answer = self._status1(servo, self._registers(servo, *parameters[:2]) if instruction == READ else b"")
        return whole, answer

    @staticmethod
    def _status1(servo, data):
        packet = bytes([servo, len(data) + 2, 0]) + data
        return b"\xff\xff" + packet + bytes([~sum(packet) & 0xFF])


def crc16(data):
    """CRC-16 of protocol 2.0: polynomial 0x8005, from 0, bits in order."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x8005 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def alone():
    """In a process of its own: a maker and {id: number} as JSON; tells its port, then takes {id: angle} as JSON, a line at a time."""
    bus = ServoBus(sys.argv[1], {int(servo): number for servo, number in json.loads(sys.argv[2]).items()})
    print(bus.port, flush=True)
    for line in sys.stdin:
        bus.angles |= {int(servo): angle for servo, angle in json.loads(line).items()}
        print("taken", flush=True)
    bus.close()


if __name__ == "__main__":
    alone()
