"""What can run code when it is read is nowhere in the packages."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("sinew", "policies", "sim", "robot_bridge", "rl", "rewards", "calibration", "demos", "lerobot_policy_sinew")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {("torch", "load"), ("torch", "save"), ("yaml", "load"), ("numpy", "load"), ("np", "load"), ("pickle", "loads"), ("os", "system")}
NAMES = {"eval", "exec", "__import__"}


def found(path: Path) -> list[str]:
    """Uses in one file."""
    uses = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            uses += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            uses.append(str(node.module))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            call = (node.func.value.id, node.func.attr)
            uses += [".".join(call)] if call in CALLS else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
            uses.append(node.func.id)
    return [f"{path.relative_to(ROOT)}:{use}" for use in uses]


def test_nothing_is_unpickled_or_evaluated():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 200
    assert [use for path in files for use in found(path)] == []


def test_the_search_finds_what_it_looks_for(tmp_path):
    path = ROOT / "tests/policies/test_malicious.py"  # which makes pickles, to have them refused
    assert {use.rpartition(":")[2] for use in found(path)} == {"pickle", "torch.save"}
