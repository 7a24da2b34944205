"""Fixtures of the devices' tests: a bus of servos on a pseudo-terminal."""

import importlib.util
from pathlib import Path

import pytest


def _load(name):
    """A module beside this file; the folder is no package."""
    spec = importlib.util.spec_from_file_location(f"teleop_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SERVO_BUS = _load("servo_bus")


@pytest.fixture
def servo_bus():
    """(maker, {id: model's number}) → a bus; every one that was made is unplugged in the end."""
    made = []

    def plug(maker, servos, **options):
        made.append(SERVO_BUS.ServoBus(maker, servos, **options))
        return made[-1]

    yield plug
    for bus in made:
        bus.close()
