"""Fixtures of the policy tests: one thread, and the module of toys."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("toys.py"))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


TOYS = _load("policy_toys")


@pytest.fixture
def toys() -> ModuleType:
    """Small data, worlds and policies with known answers."""
    return TOYS


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Results and times do not depend on how many cores a machine has."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case` runs over every policy of the toys."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", TOYS.CASES)
