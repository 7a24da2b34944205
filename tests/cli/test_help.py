"""`sinew --help` is light, verbs are complete, wrong input ends with one line and the right exit code; real processes."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from sinew.cli.eval import Args as EvalArgs
from sinew.cli.improve import Args as ImproveArgs
from sinew.cli.main import VERBS, parse

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "mujoco", "cv2", "av", "pyarrow", "scipy", "gymnasium", "cyclonedds", "rosbags", "diffusers", "safetensors")


def sinew(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sinew", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


def module_of(verb: str) -> str:
    return f"sinew.cli.{verb.replace('-', '_')}"


def loaded_after(source: str) -> set[str]:
    """Top-level packages that a process has loaded after running `source`."""
    source += "\nimport sys, json\nsys.__stderr__.write(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(done.stderr))


def test_help_names_every_verb_and_loads_nothing_heavy() -> None:
    done = sinew("--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert verb in done.stdout
    loaded = loaded_after("from sinew.cli.main import main\nmain(['--help'])")
    assert not loaded & {*HEAVY, "numpy", "rich", "tyro"}


@pytest.mark.parametrize("verb", VERBS)
def test_importing_a_verb_loads_nothing_heavy(verb: str) -> None:
    assert not loaded_after(f"import {module_of(verb)}") & set(HEAVY)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_keeps_the_contract(verb: str) -> None:
    module = importlib.import_module(module_of(verb))
    assert callable(module.run) and callable(module.show) and module.__doc__
    forms = [get_args(form)[0] if hasattr(form, "__metadata__") else form for form in (get_args(module.Args) or [module.Args])]
    for form in forms:
        defaults: dict[str, Any] = {f.name: f.default for f in fields(form)}
        assert defaults["json"] is False and defaults["seed"] == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_of_a_verb_is_explained(verb: str) -> None:
    tree = ast.parse((ROOT / f"{module_of(verb).replace('.', '/')}.py").read_text())
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef) and any("dataclass" in ast.dump(d) for d in n.decorator_list)):
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and node.name in ("Args", "Info"):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
                assert said, f"{verb}: {ast.unparse(field.target)} has no docstring"


def test_version() -> None:
    from sinew import __version__

    done = sinew("--version")
    assert done.returncode == 0 and done.stdout == f"sinew {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evla"], "unknown verb 'evla': did you mean 'eval'"),
        (["tasks", "lfit"], "unknown task 'lfit': did you mean 'lift'"),
        (["bench", "siim"], "unknown bench 'siim': did you mean 'sim'"),
        (["bench"], "which benchmark? known are demo, sim, data"),
        (["compare", "no-such-run", "nor-this"], "no run at no-such-run"),
        (["data", "info", "no-such-dataset"], "no-such-dataset"),
        (["train", "--data", "a", "--out", "b", "--set", "x=1", "--set=y=2"], "--set is given 2 times and only the last would count"),
        (["train", "--data", "a", "--data", "b", "--out", "c"], "give all values after one --data"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    for form in (arguments, [*arguments, "--json"]) if len(arguments) > 1 else (arguments,):
        done = sinew(*form)
        assert done.returncode == 2, done.stderr
        assert done.stdout == "" and done.stderr.startswith("sinew: ") and done.stderr.count("\n") == 1
        assert message in done.stderr and "Traceback" not in done.stderr


def test_tasks_json_is_one_object_with_specs() -> None:
    done = sinew("tasks", "lift", "--json")
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["tasks"]
    assert task["name"] == "lift" and task["rate_hz"] == 20.0
    assert len(task["action"]["names"]) == len(task["action"]["low"]) == len(task["action"]["high"])
    assert task["observation"]["observation.state"]["shape"] == [24]


def test_output_may_be_cut_short_by_a_closed_pipe() -> None:
    done = subprocess.run(
        f"{sys.executable} -m sinew tasks lift | head -1", shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr and done.stdout.startswith("lift")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["improve", "a", "--out", "b", "--backend", "nothing"], "invalid choice 'nothing' for argument '--backend'"),
        (["improve", "a"], "Missing from sinew improve: --out PATH; sinew improve --help"),
        (["improve", "--out", "b"], "Missing from sinew improve: STR|PATH Run of the policy to improve"),
        (["eval", "x", "--episodes", "abc"], "sinew: --episodes: 'abc' is no whole number, as 2500, 100k or 1.5M are; sinew eval"),
        (["improve", "x", "--out", "y", "--steps", "1.5"], "sinew: --steps: '1.5' is no whole number"),
        (["tasks", "--whatever"], "Unrecognized options: --whatever"),
        (["data"], "Expected one of {info, check"),
        (["data", "nothing"], "Available subcommands: info, check"),
    ],
)
def test_words_that_do_not_fit_get_one_line(words: list[str], told: str) -> None:
    done = sinew(*words, PYTHONIOENCODING="ascii" if len(words) > 2 else "utf-8")  # the parser draws its box in either
    said = done.stderr
    assert done.returncode == 2 and said.startswith("sinew: ") and told in said and said.count("\n") == 1
    assert not set("│╭─|") & set(said.replace("STR|PATH", "")) and "---" not in said


@pytest.mark.parametrize(("text", "number"), [("2500", 2500), ("100_000", 100_000), ("100k", 100_000), ("1.5M", 1_500_000), ("None", None)])
def test_whole_numbers_may_be_written_short(text: str, number: int | None) -> None:
    assert parse(ImproveArgs, ["run", "--out", "out", "--steps", text], "sinew improve", None).steps == number
    if number is not None:
        assert parse(EvalArgs, ["run", "--episodes", text], "sinew eval", None).episodes == number
