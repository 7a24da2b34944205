"""Instructions on their way from datasets to the loss, and from the executor to `encode`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from policies.base import EmbeddingContext, PolicyModule, weighted_loss
from policies.batches import Windows
from policies.evaluate import evaluate
from policies.executor import ChunkExecutor
from policies.language import select, to_device
from policies.parallel import Group
from policies.train import TrainConfig, train
from sinew.errors import DataError, InputError
from sinew.protocols import Chunk
from sinew.rundir import RunDir
from sinew.specs import STATE

LEFT, RIGHT = "go left", "go right"


def speaking(toys, **settings):
    """A scripted policy that acts by language: action = 0.1 for "go right", -0.1 for "go left", plus 0.01 h."""

    class Speaking(toys.ScriptedPolicy):
        def __init__(self) -> None:
            super().__init__(**settings)
            self.spec = replace(self.spec, capabilities=("noise", "language"))
            self.heard: list[list[str]] = []

        def encode(self, obs):
            assert len(obs["task"]) == len(obs[STATE])
            self.heard.append(list(obs["task"]))
            sign = torch.tensor([1.0 if text == RIGHT else -1.0 for text in obs["task"]])
            return EmbeddingContext(sign[:, None])

    return Speaking()


class Told(PolicyModule):
    """Learns one action per instruction."""

    def __init__(self, toys) -> None:
        super().__init__(replace(toys.policy_spec(horizon=2), capabilities=("language",), noise_shape=(2, 3)), None)
        self.actions = nn.Parameter(torch.zeros(2, 3))
        self.seen: list[list[str]] = []

    def loss(self, batch, *, t=None, noise=None):
        self.seen.append(batch["task"])
        rows = torch.tensor([int(text == RIGHT) for text in batch["task"]])
        error = (self.actions[rows][:, None] - batch["action"]).square().mean((1, 2))
        return weighted_loss(error, batch)


class Instructed:
    """Toy data whose odd episodes go right and whose even ones go left; "weight" is 1 for frames on the right, else 0."""

    tasks = (LEFT, RIGHT)

    def __init__(self, toys) -> None:
        data = toys.ToyData(episodes=4, length=10)
        self.data, self.observation_spec, self.action_spec, self.num_episodes = data, data.observation_spec, data.action_spec, 4
        self.right = np.arange(len(data)) // data.length % 2
        data.actions[:] = data.action_spec.denormalize(np.where(self.right, 0.5, -0.5)[:, None].repeat(3, 1)).astype(np.float32)
        self.stats, self.window = data.stats, data.window

    def __len__(self) -> int:
        return len(self.data)

    def column(self, key: str) -> np.ndarray:
        frame = np.arange(len(self.data)) % self.data.length
        columns = {"task_index": self.right[:, None], "frame_index": frame, "weight": self.right[:, None].astype(np.float32)}
        if key not in columns:
            raise DataError(f"no column {key!r}")
        return columns[key]


# ------------------------------------------------------------ acting


def observed(n: int) -> dict[str, torch.Tensor]:
    return {STATE: torch.zeros(n, 2)}


def test_every_world_hears_its_own_instruction(toys):
    policy = speaking(toys, horizon=3)
    executor = ChunkExecutor(policy, 3, instruction=[RIGHT, LEFT, RIGHT], noise="zero", act_steps=2)
    action = executor.act(observed(3))[:, 0]
    torch.testing.assert_close(action, torch.tensor([0.1, -0.1, 0.1]))
    executor.reset([1])
    executor.act(observed(3))
    assert policy.heard == [[RIGHT, LEFT, RIGHT], [LEFT]], "world 1 alone was due"
    torch.testing.assert_close(executor.peek(observed(1), [2])[:, 0], torch.tensor([0.1]))
    executor.act({key: value[1:] for key, value in observed(3).items()}, ids=[1, 2])
    assert policy.heard[-1] == [RIGHT], "world 2 alone was due"


def test_one_text_is_for_all_worlds(toys):
    executor = ChunkExecutor(speaking(toys), 4, instruction=LEFT, noise="zero", mode="ensemble")
    assert (executor.act(observed(4)) < 0).all()


def test_a_language_policy_without_instruction_is_refused(toys):
    for instruction, message in [
        (None, "given no instruction: pass instruction=TEXT"),
        ([LEFT], "1 instructions given for 2 worlds"),
        ("  ", "instruction is blank"),
        ([LEFT, ""], "instruction is blank"),
    ]:
        with pytest.raises(InputError, match=message):
            ChunkExecutor(speaking(toys), 2, instruction=instruction)


def test_other_policies_hear_nothing(toys):
    policy = toys.ScriptedPolicy()
    plain, told = ChunkExecutor(policy, 2), ChunkExecutor(policy, 2, instruction=LEFT)
    assert told.instructions is None
    assert torch.equal(plain.act(observed(2)), told.act(observed(2)))


def test_correction_hears_the_instruction_too(toys):
    policy = speaking(toys)
    policy.spec = replace(policy.spec, capabilities=("noise", "language", "correct"))
    policy.correct = lambda obs, action: action * 0 + torch.tensor([[0.5 if text == RIGHT else -0.5] for text in obs["task"]])
    executor = ChunkExecutor(policy, 2, instruction=[LEFT, RIGHT], noise="zero")
    assert executor.act(observed(2))[:, 0].tolist() == [-0.5, 0.5]
    assert executor.act({STATE: torch.zeros(1, 2)}, ids=[1])[:, 0].tolist() == [0.5]


def test_evaluation_depends_on_the_instruction(toys):
    class Homing(toys.ScriptedPolicy):
        """Goes to the origin when told to, else stays."""

        def __init__(self) -> None:
            super().__init__(horizon=1)
            self.spec = replace(self.spec, capabilities=("noise", "language"))

        def encode(self, obs):
            going = torch.tensor([float(text == RIGHT) for text in obs["task"]])
            return EmbeddingContext(obs[STATE][:, -1] * going[:, None])

        def sample(self, ctx, *, n=1, noise=None, steps=None, **_):
            action = torch.zeros(ctx.batch, 1, 1, 3)
            action[:, 0, 0, :2] = self.spec.action.normalize(torch.cat([-0.5 * ctx.embedding, torch.zeros(ctx.batch, 1)], 1))[:, :2]
            return Chunk(actions=action.clamp(-1, 1), noise=noise)

    going, staying = (
        evaluate(Homing(), toys.PointEnv(4), range(10), executor_kwargs={"instruction": text}).k for text in (RIGHT, LEFT)
    )
    assert going > staying


# ------------------------------------------------------------ training


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_every_sample_comes_with_the_text_and_weight_of_its_frame(toys, limit):
    data = Instructed(toys)
    spec = replace(toys.policy_spec(), capabilities=("language",))
    windows = Windows(data, spec, 8, 0, Group(1, 2), limit_bytes=limit, weights=data.column("weight")[:, 0])
    for indices, batch in windows(0, 6):
        assert batch["task"] == [data.tasks[i] for i in data.right[indices]]
        assert batch["weight"].tolist() == data.right[indices].tolist()
        assert len(batch["task"]) == len(batch["action"]) == 4
    silent = Windows(data, toys.policy_spec(), 8, 0, Group())
    assert {"task", "weight"}.isdisjoint(next(iter(silent(0, 1)))[1])


def test_data_without_instructions_cannot_teach_language(toys):
    class Silent(toys.ToyData):
        tasks = ()

    with pytest.raises(DataError, match="learns from language and Silent tells no instructions"):
        Windows(Silent(), replace(toys.policy_spec(), capabilities=("language",)), 8, 0, Group())


def test_training_tells_instructions_apart_and_resumes_exactly(toys, tmp_path):
    config = TrainConfig(steps=150, batch_size=8, learning_rate=0.1, warmup_steps=1, ema_decay=0.0, checkpoint_every=60)
    data = Instructed(toys)
    whole = trained(toys, data, tmp_path / "whole", config)
    torch.testing.assert_close(whole.actions.data, torch.tensor([[-0.5] * 3, [0.5] * 3]), rtol=0, atol=0.02)

    stopped = Told(toys)
    original, calls = stopped.loss, []

    def interrupted(batch, **kwargs):
        calls.append(1)
        if len(calls) == 100:
            raise OSError
        return original(batch, **kwargs)

    stopped.loss = interrupted  # type: ignore[method-assign]
    with pytest.raises(OSError):
        fit(stopped, data, tmp_path / "parts", config)
    resumed = trained(toys, data, tmp_path / "parts", config)
    assert torch.equal(resumed.actions, whole.actions)
    assert resumed.seen == whole.seen[60:]


def test_weight_zero_means_not_learned_from(toys, tmp_path):
    config = TrainConfig(steps=60, batch_size=8, learning_rate=0.1, warmup_steps=1, ema_decay=0.0)
    data = Instructed(toys)
    policy = trained(toys, data, tmp_path / "run", config, weights=data.column("weight")[:, 0])
    assert torch.equal(policy.actions[0], torch.zeros(3)) and policy.actions[1].min() > 0.3
    with pytest.raises(InputError, match=r"was trained with weights = '[0-9a-f]{64}', not None"):
        trained(toys, data, tmp_path / "run", config)


def test_weights_that_cannot_be_are_refused(toys):
    data, spec = toys.ToyData(2, 5), toys.policy_spec(horizon=5)
    ones = np.ones(10)
    for weights, message in [
        (ones[:9], r"shape \(9,\); one number for each of the 10 frames"),
        (np.where(np.arange(10) == 3, -0.5, 1), "frame 3 is -0.5"),
        (np.where(np.arange(10) == 4, np.nan, 1), "frame 4 is nan"),
        (np.where(np.arange(10) == 5, np.inf, 1), "frame 5 is inf"),
        (0 * ones, "all sample weights are zero"),
    ]:
        with pytest.raises(InputError, match=message):
            Windows(data, spec, 4, 0, Group(), weights=weights)


def test_rows_and_devices_of_batches_with_texts():
    batch = {"x": torch.arange(4), "task": ["a", "b", "c", "d"]}
    for rows in (np.array([2, 0]), [2, 0], torch.tensor([2, 0])):
        assert select(batch, rows)["x"].tolist() == [2, 0] and select(batch, rows)["task"] == ["c", "a"]
    assert select(batch, slice(1, 3))["task"] == ["b", "c"]
    assert to_device(batch, "cpu")["task"] is batch["task"]


def trained(toys, data, folder, config, **kwargs):
    return fit(Told(toys), data, folder, config, **kwargs)


def fit(policy, data, folder, config, **kwargs):
    """`train` without writing policy.json: the class is of this test alone."""
    import policies.train as module

    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save", lambda *_: None)
        return train(policy, data, RunDir(folder), config, **kwargs)
