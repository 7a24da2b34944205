"""The examples of CONTRIBUTING.md, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
EXAMPLES = dict(re.findall(r"```python (\w+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL))

USES = {
    "task": """
import gymnasium, torch, sim
n = 8
env, expert = sim.make_vec("topple", n), sim.make_expert("topple", num_envs=n)
obs, won = env.reset(0), torch.zeros(n, dtype=torch.bool)
expert.reset(None, range(n))
for _ in range(env.max_episode_steps):
    obs, _, terminated, truncated, info = env.step(expert.act(obs))
    won |= info["success"]
assert won.sum() >= n - 1, won
""",
    "policy": """
import numpy as np, torch
import policies
from sinew.specs import ActionSpec, ObservationSpec, PolicySpec, TensorSpec
observation = ObservationSpec({"observation.state": TensorSpec(shape=(3,))})
action = ActionSpec(kind="joint_position", low=(-2, -2), high=(2, 2), rate_hz=10, names=("a", "b"))
stats = {"observation.state": {"mean": np.zeros(3), "std": np.ones(3)}}
policy = policies.make("regression", PolicySpec(observation=observation, action=action, horizon=4), stats, {"width": 32})
obs = {"observation.state": torch.randn(16, 1, 3)}
batch = {**obs, "action": torch.rand(16, 4, 2) - 0.5, "action_is_pad": torch.zeros(16, 4, dtype=torch.bool)}
optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
first = policy.loss(batch).scalar.item()
for _ in range(200):
    optimizer.zero_grad(); policy.loss(batch).scalar.backward(); optimizer.step()
assert policy.loss(batch).scalar.item() < 0.2 * first
assert policy.sample(policy.encode(obs), n=3).actions.shape == (16, 3, 4, 2)
residual = policies.Residual(policy)
executor = policies.ChunkExecutor(residual, 2)
assert executor.act({"observation.state": torch.randn(2, 3)}).shape == (2, 2)
""",
    "reward": """
import sim
from rewards.environment import Rewarded
env = Rewarded(sim.make_vec("lift", 4), height_reward(sim.make_vec("lift", 1).observation_spec, "cube"))
expert = sim.make_expert("lift", num_envs=4)
obs, total = env.reset(0), 0
expert.reset(None, range(4))
for _ in range(12):
    obs, reward, *_ = env.step(expert.act(obs))
    total = total + reward
assert total.shape == (4,)
""",
    "robot": """
import torch
expert = sim.make_expert("reach", num_envs=8, robot=scara)
obs, won = env.reset(0), torch.zeros(8, dtype=torch.bool)
expert.reset(None, range(8))
for _ in range(env.max_episode_steps):
    obs, _, terminated, *_ = env.step(expert.act(obs))
    won |= terminated
assert won.sum() >= 6, won
""",
}


@pytest.mark.parametrize("name", sorted(USES))
def test_example_is_short_and_works(name, tmp_path):
    example = EXAMPLES[name]
    assert len([line for line in example.splitlines() if line.strip()]) <= 60
    done = subprocess.run([sys.executable, "-c", example + USES[name]], capture_output=True, text=True, cwd=tmp_path, env=ENV, timeout=120)
    assert done.returncode == 0, done.stderr
