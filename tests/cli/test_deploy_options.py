"""Options of `sinew deploy` that cannot be, or do not go together: one line each, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sinew.cli import deploy
from sinew.cli.deploy_report import lines
from sinew.cli.deploy_robot import check
from sinew.errors import InputError


def args(**settings: Any) -> deploy.Args:
    return deploy.Args(run="run", **settings)


@pytest.mark.parametrize(("settings", "said"), [
    ({"controller_rate": 0.0}, "--controller-rate 0 must be between"),
    ({"controller_rate": 5000.0}, "--controller-rate 5000 must be between"),
    ({"timeout": -1.0}, "--timeout -1 above 0 s"),
    ({"max_steps": 0}, "--max-steps 0: at least 1 is needed"),
    ({"robot": "sim", "robot_config": "ur5e"}, "--robot-config ur5e is for a robot on the network"),
    ({"robot": "sim", "mcap": Path("a.mcap")}, "--mcap a.mcap is for a robot on the network"),
    ({"robot": "sim", "hold_on_drift": True, "calibration": ("c",)}, "--hold-on-drift is for a robot on the network"),
    ({"hold_on_drift": True}, "give --calibration"),
    ({"robot_config": "ur7"}, "unknown robot 'ur7'"),
    ({"robot_config": "ur5e"}, "give --yes, or --start-pose here"),
    ({"start_pose": "home"}, "give --yes, or --start-pose here"),
    ({"dead_man": True}, "--dead-man needs a terminal"),
    ({"e_stop_topic": "stop"}, "give an absolute name"),
])  # fmt: skip
def test_what_cannot_be_is_refused(settings, said, monkeypatch):
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    with pytest.raises(InputError) as refused:
        check(args(**settings))
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "settings", [{}, {"robot_config": "ur5e", "yes": True}, {"robot_config": "ur5e", "start_pose": "here"}, {"robot": "sim"}]
)
def test_what_can_be_is_taken(settings, monkeypatch):
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    check(args(**settings))


def test_options_of_a_policy_server_are_refused_for_a_run(tmp_path):
    for settings in ({"ca": tmp_path / "ca.pem"}, {"token_file": tmp_path / "token"}):
        with pytest.raises(InputError, match="is for a policy behind a server"):
            deploy._source(deploy.Args(run=str(tmp_path), **settings))


def report(**changes: Any) -> dict[str, Any]:
    cadence = {"rate_hz": 20.0, "achieved_hz": 19.9, "ticks": 100, "late_ticks": 0, "missed_deadlines": 0, "due_to": {}}
    stops = {"count": 0, "e_stop_to_command_ms": None, "last_target_to_hold_ms": None, "command_to_standstill_ms": None}
    whole = {
        "episodes": [],
        "readiness": {"p50_ms": 2.0, "p95_ms": 3.0, "budget_ms": 50.0, "slow": ""},
        "policy": {**cadence, "observations": {"images.front": {"oldest_ms": 40.0}}},
        "controller": {**cadence, "rate_hz": 100.0, "stops": stops},
        "gate": {"events": []},
    }
    return {
        "run": "r", "task": "lift", "robot": "dds", "success": None, "executor": {"mode": "sync"}, "prepared": None, "recorded": None,
        "stopped": "", "report": {**whole, **changes},
    }  # fmt: skip


def test_a_deployment_without_trouble_is_told_in_three_lines():
    assert len(list(lines(report()))) == 3


def test_what_made_it_late_what_was_old_and_what_stopped_it_are_told():
    told = report()
    told["report"]["policy"] |= {"missed_deadlines": 4, "late_ticks": 1, "due_to": {"policy": 3}}
    told["report"]["policy"]["observations"] = {"images.front": {"late": 7, "held": 2, "oldest_ms": 190.0}}
    told["report"]["controller"]["stops"] = {**told["report"]["controller"]["stops"], "count": 1, "e_stop_to_command_ms": 2.5}
    told["report"]["why"] = "e_stop (key 'x')"
    text = "\n".join(lines({**told, "stopped": "e_stop"}))
    assert "4 missed deadlines (due to: policy 3)" in text and "late 7, held 2 ticks; the oldest used was 190 ms old" in text
    assert "1 stops, at most 2.5 ms from the e-stop to the first braking command" in text and "e_stop (key 'x')" in text
    assert deploy.exit_code({"stopped": "e_stop"}) == 4 and deploy.exit_code({"stopped": ""}) == 0
