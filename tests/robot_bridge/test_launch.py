"""The launch files against a stand-in for ROS 2's launch package, and their commands against the real command line."""

from __future__ import annotations

import importlib
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import tyro

from sinew.cli import launching
from sinew.cli.launching import Argument
from sinew.errors import InputError, MissingDependency

FOLDER = Path(__file__).resolve().parents[2] / "launch"
FILES = sorted(p.name.removesuffix(".launch.py") for p in FOLDER.glob("*.launch.py"))


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
        "launch.substitutions": [],
    }
    for module, classes in names.items():
        made = types.ModuleType(module)
        for name in classes:
            setattr(made, name, type(name, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, module, made)
    sys.modules["launch.substitutions"].LaunchConfiguration = LaunchConfiguration  # type: ignore[attr-defined]
    monkeypatch.delenv("ROS_DOMAIN_ID", raising=False)
    monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE", raising=False)


def words(file: str, **given: str) -> list[str]:
    """The command that a launch file starts with these arguments."""
    description = runpy.run_path(str(FOLDER / f"{file}.launch.py"))["generate_launch_description"]()
    actions = description.args[0]
    declared = {a.args[0]: a.options for a in actions if type(a).__name__ == "DeclareLaunchArgument"}
    assert all(options["description"] for options in declared.values()) and given.keys() <= declared.keys()
    values = {name: given.get(name, options.get("default_value")) for name, options in declared.items()}
    missing = [name for name, value in values.items() if value is None]
    assert not missing, missing
    (function,) = [a.options["function"] for a in actions if type(a).__name__ == "OpaqueFunction"]
    (process,) = function(values)
    (end,) = process.options["on_exit"]
    assert type(end).__name__ == "EmitEvent"
    return process.options["cmd"]


def parsed(command: list[str]) -> Any:
    """The command's arguments as its verb reads them."""
    assert command[:3] == [sys.executable, "-m", "sinew"]
    return tyro.cli(importlib.import_module(f"sinew.cli.{command[3]}").Args, args=command[4:])


def test_deploy(launch):
    args = parsed(words("deploy", run="runs/a", robot="ur5e"))
    assert (args.run, args.robot, args.robot_config, args.episodes, args.scene) == ("runs/a", "ros2", "ur5e", 1, False)
    assert args.domain == 0 and args.reach == "SUBNET" and args.start_pose == "here"  # ROS 2's own defaults under ros2 launch
    args = parsed(words("deploy", run="https://gpu:8443", transport="dds", scene="true", executor="rtc", controller_rate="250", record="d"))
    assert (args.robot, args.robot_config, args.scene, args.executor, args.controller_rate) == ("dds", None, True, "rtc", 250.0)
    assert args.record == Path("d") and args.mcap is None


def test_sim(launch):
    args = parsed(words("sim", cameras="front wrist", seed="7"))
    assert args.cameras == ("front", "wrist") and args.task == "lift" and args.seed == 7 and args.rate == 100.0


def test_record(launch, tmp_path):
    args = parsed(words("record", out=str(tmp_path / "bag"), robot="fr3", topics="/joint_states /tf", duration="2.5"))
    assert args.out == tmp_path / "bag" and args.contract == "fr3" and args.topics == ("/joint_states", "/tf") and args.duration == 2.5
    assert args.transport == "ros2"


def test_demonstrations_by_either_file(launch, tmp_path):
    given = {"teleop": "topic", "out": str(tmp_path), "robot": "ur5e", "task": "wave the arm", "teleop_config": "a.json", "episodes": "3"}
    args = parsed(words("teleop", **given, transport="dds", cameras="front wrist"))
    assert (args.teleop, args.out, args.robot_config, args.robot, args.task) == ("topic", tmp_path, "ur5e", "dds", "wave the arm")
    assert args.teleop_config == (Path("a.json"),) and args.teleop_events == "/sinew/teleop/event" and args.episodes == 3
    assert args.cameras == ("front", "wrist") and args.action is None and args.frame == "world"
    assert words("record", **given)[3:] == words("teleop", **given)[3:]  # a dataset that is there goes on
    assert words("record", out=str(tmp_path / "bag"))[3:5] == ["data", "record"]
    with pytest.raises(InputError, match="is there already"):
        words("record", out=str(tmp_path))


def test_calibrate(launch, tmp_path):
    args = parsed(words("calibrate", mode="to_hand"))
    assert (args.robot, args.mount, args.camera, args.yes, args.publish) == ("ros2", "to_hand", ("front",), False, True)
    assert args.robot_config is None and args.data is None and args.intrinsics is None and args.reach == "SUBNET"
    (tmp_path / "camera.json").write_text("{}")
    given = {"mode": "in_hand", "robot": "ur5e", "camera": "wrist", "transport": "dds", "intrinsics": str(tmp_path / "camera.json")}
    args = parsed(words("calibrate", **given, accuracy="0.5mm,0.1deg", views_max="12", square="0.04", resume="true", yes="true"))
    assert (args.robot, args.robot_config, args.mount, args.camera) == ("dds", "ur5e", "in_hand", ("wrist",))
    assert (args.accuracy, args.views_max, args.square, args.resume, args.yes) == ("0.5mm,0.1deg", 12, 0.04, True, True)


def test_the_domain_of_the_shell_is_the_default(launch, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    args = parsed(words("sim"))
    assert args.domain == 42 and args.reach == "LOCALHOST"


@pytest.mark.parametrize(
    ("file", "given", "said"),
    [
        ("deploy", {"run": "a", "controller_rate": "5000"}, "controller_rate:=5000: give a number from 1 to 1000"),
        ("deploy", {"run": "a", "controller_rate": "nan"}, "give a number from 1 to 1000"),
        ("deploy", {"run": "a", "episodes": "1.5"}, "a whole number from 1 to"),
        ("deploy", {"run": "a", "episodes": ""}, "episodes:= is empty"),
        ("deploy", {"run": "a", "transport": "zenoh"}, "transport:=zenoh: give one of ros2, dds"),
        ("deploy", {"run": "a", "scene": "yes"}, "scene:=yes: give one of true, false"),
        ("deploy", {"run": " "}, "run:= is empty"),
        ("deploy", {"run": "a", "token_file": "/nowhere/t"}, "no such file"),
        ("deploy", {"run": "a", "mcap": "/"}, "is there already"),
        ("deploy", {"run": "a", "domain": "233"}, "from 0 to 232"),
        ("record", {"out": "/"}, "is there already"),
        ("teleop", {"out": "a", "transport": "zenoh"}, "give one of ros2, dds, sim"),
        ("teleop", {"out": " "}, "out:= is empty"),
        ("sim", {"rate": "0"}, "from 1 to 1000"),
        ("calibrate", {"mode": "beside"}, "mode:=beside: give one of to_hand, in_hand"),
        ("calibrate", {"mode": "in_hand", "intrinsics": "/nowhere/camera.json"}, "no such file"),
        ("calibrate", {"mode": "in_hand", "views_max": "2"}, "a whole number from 3 to 1000"),
        ("calibrate", {"mode": "in_hand", "speed": "1.5"}, "from 0.001 to 1"),
        ("sim", {"reach": "EVERYWHERE"}, "LOCALHOST, SUBNET"),
    ],
)
def test_arguments_are_checked_before_anything_starts(launch, file, given, said):
    with pytest.raises(InputError, match=said) as e:
        words(file, **given)
    assert "\n" not in str(e.value)


def test_what_is_not_there_yet_says_so():
    with pytest.raises(InputError, match="sinew wave is not there yet"):
        launching.command(("wave",), (), {})


def test_words_of_a_shell_are_split_as_a_shell_does():
    whole = Argument(name="arguments", description="words", default="", kind="words")
    assert launching.command(("tasks",), [whole], {"arguments": "--json --name 'a b'"})[4:] == ["--json", "--name", "a b"]
    with pytest.raises(InputError, match="close the quotes"):
        whole.words("'a")


def test_without_launch_the_way_to_it_is_told():
    if importlib.util.find_spec("launch.actions") is not None:
        pytest.skip("ROS 2's launch is here")
    with pytest.raises(MissingDependency, match=r"setup\.bash"):
        launching.description(("robot",), (), "sim")


def test_every_file_is_there_and_the_folder_is_no_package():
    assert {"calibrate", "deploy", "record", "sim", "teleop"} == set(FILES)
    assert not (FOLDER / "__init__.py").exists()  # it would shadow ROS 2's launch
