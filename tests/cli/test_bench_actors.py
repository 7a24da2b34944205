"""The bench of actors and learner: robots that share a process, and what its figures are held against."""

from __future__ import annotations

import torch

from sinew.cli.benchmarks import actors


def test_robots_of_a_process_tick_and_end_together(monkeypatch):
    monkeypatch.setattr(actors.time, "sleep", lambda seconds: None)
    worlds = actors.SleepingRobots(3)
    assert worlds.reset()["observation.state"].shape == (3, actors.STATE_DIM) and worlds.began is None
    for step in range(actors.EPISODE_STEPS):
        obs, reward, terminated, truncated, info = worlds.step(torch.zeros(3, actors.ACTION_DIM))
        assert terminated.tolist() == [step == actors.EPISODE_STEPS - 1] * 3 and not truncated.any()
    assert reward.tolist() == [1.0] * 3 and info["success"].all() and worlds.began is not None
    assert float(obs["observation.state"].max()) == 0.0 and float(info["final_observation"]["observation.state"].min()) == 1.0
    assert actors.Standstill().plan(obs).shape == (3, actors.ACTION_DIM)


def test_late_steps_idle_learners_and_lost_steps_miss_their_targets():
    good = {
        "steps_per_s": 1220.0,
        "updates_per_cpu_s": 30.0,
        "waited": 0.0,
        "lost": 0,
        "processes": 8,
        "acting_cores": 0.24,
        "learner_cores": 1.0,
    }
    bad = good | {"steps_per_s": 1200.0, "waited": 0.02, "lost": 1}
    for measured, holds in ((good, True), (bad, False)):
        rows = actors._rows(64, measured, 60.0)
        assert [row.holds for row in rows if row.target] == [holds] * 3 and rows[0].peer_value == 1280
        assert [row.ours for row in rows if row.unit == "cores"] == [0.24, 1.0]
