"""The launch files against a stand-in for ROS 2's launch package, and their commands against the real command line."""

from __future__ import annotations

import dataclasses
import importlib
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "launch"


class Recorded:
    def __init__(self, *args: Any, **options: Any) -> None:
        self.args, self.options = args, options


@pytest.fixture
def launch(monkeypatch):
    """Modules with the names that launch files import; LaunchConfiguration looks values up in the context."""

    class LaunchConfiguration(Recorded):
        def perform(self, context):
            return context[self.args[0]]

    names = {
        "launch": ["LaunchDescription"],
        "launch.actions": ["DeclareLaunchArgument", "EmitEvent", "ExecuteProcess", "OpaqueFunction"],
        "launch.events": ["Shutdown"],
        "launch.substitutions": ["EnvironmentVariable"],
    }
    for module, classes in names.items():
        made = types.ModuleType(module)
        for name in classes:
            setattr(made, name, type(name, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, module, made)
    sys.modules["launch.substitutions"].LaunchConfiguration = LaunchConfiguration  # type: ignore[attr-defined]


@pytest.mark.parametrize(("verb", "file", "given"), [("robot", "sim", {"cameras": "front wrist"}), ("deploy", "deploy", {"run": "runs/a"})])
def test_starts_our_command_with_flags_that_exist(launch, verb, file, given):
    description = runpy.run_path(str(FOLDER / f"{file}.launch.py"))["generate_launch_description"]()
    actions = description.args[0]
    declared = {a.args[0]: a.options for a in actions if type(a).__name__ == "DeclareLaunchArgument"}
    assert all(options["description"] for options in declared.values())
    values = {}
    for name, options in declared.items():
        default = options.get("default_value")
        values[name] = given.get(name) or (default.options["default_value"] if isinstance(default, Recorded) else default)
    assert None not in values.values()
    (function,) = [a.options["function"] for a in actions if type(a).__name__ == "OpaqueFunction"]
    (process,) = function(values)
    command = process.options["cmd"]
    assert command[:4] == [sys.executable, "-m", "sinew", verb]
    arguments = importlib.import_module(f"sinew.cli.{verb}").Args
    known = {f.name for f in dataclasses.fields(arguments)}
    flags = [part[2:].removeprefix("no-").replace("-", "_") for part in command if part.startswith("--")]
    assert flags and set(flags) <= known
    tyro = pytest.importorskip("tyro")
    parsed = tyro.cli(arguments, args=command[4:])
    assert parsed.domain == 0 and parsed.reach == "SUBNET"  # ROS 2's own defaults under ros2 launch
    if verb == "robot":
        assert parsed.cameras == ("front", "wrist") and parsed.task == "lift"
    else:
        assert str(parsed.run) == "runs/a" and parsed.scene is False


def test_the_folder_is_no_package():
    assert not (FOLDER / "__init__.py").exists()  # it would shadow ROS 2's launch
