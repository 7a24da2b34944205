from dataclasses import dataclass

import pytest
import torch

from rewards import files
from rewards.environment import Rewarded
from rewards.files import OrSparse, RewardUnavailable, Situation
from sinew.errors import DataError, InputError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

SITUATION = Situation(
    observation=ObservationSpec({"observation.state": TensorSpec(shape=(1,))}),
    action=ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=20.0, names=("x",)),
    gamma=0.99, num_envs=2, max_episode_steps=5,
)  # fmt: skip
STEP = {"success": torch.tensor([True, False])}


@files.KINDS.add("of-a-test")
@dataclass(frozen=True, kw_only=True)
class Settings:
    weight: float
    there: bool = True

    def build(self, situation):
        if not self.there:
            raise RewardUnavailable("the model does not answer")
        return Weighted(self.weight)


class Weighted:
    low, high = 0.0, 9.0

    def __init__(self, weight):
        self.weight, self.broken = weight, False

    def reward(self, transition, context):
        if self.broken:
            raise RewardUnavailable("tracking is lost")
        return self.weight * transition["success"].float()


def test_a_file_comes_back_as_what_was_saved(tmp_path):
    files.save(tmp_path / "r.json", "of-a-test", Settings(weight=3.0), {"model": "none"})
    kind, settings = files.load(tmp_path / "r.json")
    assert (kind, settings) == ("of-a-test", Settings(weight=3.0))
    assert files.build(tmp_path / "r.json", SITUATION).reward(STEP, {}).tolist() == [3.0, 0.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "no reward file"),
        ('{"reward": "of-a-test", "version": 9, "settings": {}}', "version 9"),
        ('{"reward": "of-a-tset", "version": 1, "settings": {}}', "did you mean 'of-a-test'"),
        ('{"reward": "of-a-test", "version": 1, "settings": {}}', "'weight' is missing"),
        ('{"reward": "of-a-test", "version": 1, "settings": {"weight": "3"}}', "expected float"),
    ],
)
def test_a_wrong_file_is_said_in_one_line(tmp_path, text, said):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=said) as problem:
        files.load(tmp_path / "r.json")
    assert "\n" not in str(problem.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="propose"):
        files.load(tmp_path / "none.json")
    assert issubclass(DataError, InputError)


def test_sparse_success_stands_in_for_what_cannot_be_had_and_is_said_once(tmp_path):
    said = []
    situation = Situation(**{**vars(SITUATION), "say": said.append})
    files.save(tmp_path / "r.json", "of-a-test", Settings(weight=3.0, there=False), {})
    assert files.build(tmp_path / "r.json", situation).reward(STEP, {}).tolist() == [1.0, 0.0]
    assert said == ["the model does not answer; success alone is rewarded from here on"]

    source = Weighted(3.0)
    reward = OrSparse(source, said.append)
    assert reward.reward(STEP, {}).tolist() == [3.0, 0.0]
    source.broken = True
    assert [reward.reward(STEP, {}).tolist() for _ in range(3)] == [[1.0, 0.0]] * 3
    assert len(said) == 2


def test_a_reward_is_told_when_episodes_begin():
    told = []

    class Env:
        num_envs, max_episode_steps = 2, 5
        observation_spec = action_spec = None

        def reset(self, seed=None, ids=None):
            return {"o": torch.zeros(2)}

        def step(self, action):
            obs = {"o": torch.ones(2)}
            ended = torch.tensor([False, True])
            info = {"final_observation": obs, "success": ended}
            return obs, torch.zeros(2), torch.zeros(2, dtype=torch.bool), ended, info

    class Remembering(Weighted):
        def begin(self, obs, ids):
            told.append((float(obs["o"][0]), list(ids)))

        def reward(self, transition, context):
            told.append("reward")
            return super().reward(transition, context)

    env = Rewarded(Env(), OrSparse(Remembering(1.0), print))
    env.reset()
    env.step(torch.zeros(2, 1))
    env.reset(ids=[0])
    assert told == [(0.0, [0, 1]), "reward", (1.0, [1]), (0.0, [0])]
