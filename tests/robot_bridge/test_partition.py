"""A network that breaks for a while, for real: two processes whose loopback interface goes down and comes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

SENDER = """
import sys, time
from robot_bridge.dds.messages import make
from robot_bridge.dds.node import Node
from robot_bridge.transport import NEWEST, Profile

node = Node("sender")
command, plain = (node.publisher(name, "std_msgs/Int64", profile) for name, profile in (("/command", NEWEST), ("/plain", Profile(depth=1))))
while not (command.subscribers and plain.subscribers):
    time.sleep(0.01)
print("matched", flush=True)
for line in sys.stdin:
    for publisher in (command, plain):
        publisher.send(make("std_msgs/Int64", data=int(line)))
    print("sent", flush=True)
"""
RECEIVER = """
from robot_bridge.dds import codec
from robot_bridge.dds.node import Node
from robot_bridge.transport import NEWEST

node = Node("receiver")
heard = {name: node.subscription(name, "std_msgs/Int64", NEWEST) for name in ("/command", "/plain")}
while True:
    for name, subscription in heard.items():
        subscription.wait(0.02)
        for sample in subscription.take():
            print(name, codec.decode(sample.data, "std_msgs/Int64").data, flush=True)
"""
NETWORK = """
import itertools, subprocess, sys, threading, time

def loopback(state):
    subprocess.run(["ip", "link", "set", "lo", state], check=True)

loopback("up")
receiver, sender = (
    subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for code in sys.argv[1:]
)
heard = set()
threading.Thread(target=lambda: heard.update(map(str.strip, receiver.stdout)), daemon=True).start()

def say(word):
    sender.stdin.write(f"{word}\\n")
    sender.stdin.flush()
    assert sender.stdout.readline().strip() == "sent"

def hear(*lines):
    while not heard & {*lines}:
        time.sleep(0.01)

assert sender.stdout.readline().strip() == "matched"
say(1)
hear("/command 1")
loopback("down")
say(2)
time.sleep(1.0)  # longer than a command may live
loopback("up")
for number in itertools.count(3):  # until the two hear each other again
    say(number)
    time.sleep(0.2)
    if any(f"/command {n}" in heard for n in range(3, number + 1)):
        break
print("replayed" if "/command 2" in heard else "not replayed", "/plain 2" in heard, flush=True)
sender.kill(), receiver.kill()
"""


def isolated() -> bool:
    """Whether processes can be given a network of their own here."""
    try:
        return subprocess.run(["unshare", "-rn", "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not isolated(), reason="needs 'unshare -rn' and 'ip': a network of its own, which containers may forbid")
def test_a_command_that_a_partition_held_up_is_not_replayed(spawn: Callable[..., subprocess.Popen[str]]):
    code = f"""
import os
os.execvp("unshare", ["unshare", "-rn", {sys.executable!r}, "-c", {NETWORK!r}, {RECEIVER!r}, {SENDER!r}])
"""
    process = spawn(code, ROS_DOMAIN_ID="7", ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST")
    out, err = process.communicate(timeout=90)
    assert out.startswith("not replayed"), out + err
