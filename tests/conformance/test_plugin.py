"""Our policies inside the real lerobot: trained by lerobot-train, loaded by its factory, rolled out by its evaluation."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="runs in the venv with the real lerobot: make conformance")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gymnasium
import torch
from gymnasium import spaces
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import rollout
from lerobot.scripts.lerobot_train import main as lerobot_train

import demos
import policies
from lerobot_policy_sinew import SinewConfig
from lerobot_policy_sinew.convert import to_checkpoint, to_run
from lerobot_policy_sinew.modeling_sinew import SinewPolicy
from policies.executor import ChunkExecutor
from policies.lerobot import load
from sinew.errors import InputError
from sinew.specs import STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
CAMERA = "observation.images.front"
ACTION = ActionSpec(kind="ee_delta", low=(-1.0, -2.0), high=(1.0, 2.0), rate_hz=10.0, names=("x", "y"))
OBSERVATION = ObservationSpec({STATE: TensorSpec(shape=(2,), unit="m"), CAMERA: TensorSpec(shape=(16, 16, 3), dtype="uint8")})
SETTINGS = {"hidden": [32, 32], "steps": 3, "image": {"channels": [8], "groups": 4, "keypoints": 4, "feature_dim": 8}}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Two episodes of a point that goes home, with a camera, written by us."""
    root = tmp_path_factory.mktemp("data") / "d"
    with demos.Writer.create(root, fps=10, observation_spec=OBSERVATION, action_spec=ACTION, task="go home", video=False) as writer:
        for episode in range(2):
            at = np.random.default_rng(episode).uniform(-1, 1, 2)
            for _ in range(16):
                action = (-0.3 * at).clip(-1, 1)
                image = np.full((16, 16, 3), 100 + 50 * at[0], np.uint8)
                writer.add_frame({STATE: at.astype(np.float32), CAMERA: image, "action": action.astype(np.float32)})
                at = at + action
            writer.save_episode(success=True)
    return root


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    """The folder that the command lerobot-train leaves behind."""
    out = tmp_path_factory.mktemp("train") / "out"
    policy = ["--policy.discover_packages_path=lerobot_policy_sinew", "--policy.type=sinew", "--policy.kind=flow",
              f"--policy.settings={json.dumps(SETTINGS)}", "--policy.horizon=6", "--policy.n_action_steps=3", "--policy.n_obs_steps=2",
              "--policy.device=cpu", "--policy.push_to_hub=false", "--policy.scheduler_warmup_steps=1",
              "--policy.optimizer_lr=0.01"]  # fmt: skip
    data = ["--dataset.repo_id=local/test", f"--dataset.root={dataset}", "--dataset.video_backend=pyav"]
    rest = [f"--output_dir={out}", "--steps=30", "--batch_size=8", "--num_workers=0", "--log_freq=10", "--save_freq=30",
            "--eval_freq=0", "--wandb.enable=false", "--seed=1"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["lerobot-train", *policy, *data, *rest])
        lerobot_train()
    return out / "checkpoints/last/pretrained_model"


def theirs(root: Path) -> LeRobotDataset:
    deltas = {"action": [t / 10 for t in range(6)], STATE: [-0.1, 0.0], CAMERA: [-0.1, 0.0]}
    return LeRobotDataset("local/test", root=root, video_backend="pyav", delta_timestamps=deltas)


def collated(data: LeRobotDataset) -> dict[str, Any]:
    return next(iter(torch.utils.data.DataLoader(data, batch_size=12)))


def test_lerobot_train_trains_it_and_its_checkpoint_loads(dataset, trained):
    files = {"config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"}
    assert {path.name for path in trained.iterdir()} >= files
    policy = get_policy_class("sinew").from_pretrained(trained, strict=True)
    assert isinstance(policy, SinewPolicy) and policy.config.rate_hz == 10 and policy.config.kind == "flow"
    data = theirs(dataset)
    np.testing.assert_allclose(policy.config.action_low, np.asarray(data.meta.stats["action"]["min"]), rtol=1e-6)
    fresh = make_policy(policy_config(trained), ds_meta=data.meta)
    before, _ = make_pre_post_processors(policy.config, pretrained_path=str(trained))
    batch = before(collated(data))
    losses = []
    for candidate in (fresh, policy):
        torch.manual_seed(4)
        losses.append(np.mean([candidate.eval().forward(batch)[0].item() for _ in range(20)]))
    assert losses[1] < 0.8 * losses[0]
    one, logs = policy.forward(batch, reduction="none")
    assert one.shape == (12,) and set(logs) >= {"loss"} and all(isinstance(value, float) for value in logs.values())


def policy_config(folder: Path) -> SinewConfig:
    config: Any = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = None
    return config


def test_lerobot_train_goes_on_from_its_checkpoint(trained):
    with pytest.MonkeyPatch.context() as patched:
        arguments = [f"--config_path={trained / 'train_config.json'}", "--resume=true", "--steps=33", "--save_freq=33"]
        patched.setattr(sys, "argv", ["lerobot-train", "--policy.discover_packages_path=lerobot_policy_sinew", *arguments])
        lerobot_train()
    folders = [trained.parents[1] / step / "pretrained_model" for step in ("000033", "000030")]
    now, then = (get_policy_class("sinew").from_pretrained(folder).state_dict() for folder in folders)
    assert now.keys() == then.keys() and any(not torch.equal(now[name], then[name]) for name in now)


def test_loss_is_our_own(dataset, trained):
    policy = get_policy_class("sinew").from_pretrained(trained)
    before, _ = make_pre_post_processors(policy.config, pretrained_path=str(trained))
    raw = collated(theirs(dataset))
    torch.manual_seed(3)
    loss, _ = policy.forward(before(dict(raw)))
    ours = demos.Dataset(dataset).window(np.arange(12), 2, 6)
    batch = {key: torch.from_numpy(value) for key, value in ours.items() if key != "task"}
    batch["action"] = policy.policy.spec.action.normalize(batch["action"])
    torch.manual_seed(3)
    draws = policy.policy.draw(12)
    torch.testing.assert_close(loss, policy.policy.loss(batch, t=draws["t"], noise=draws["noise"]).scalar, rtol=1e-5, atol=1e-6)


def observed(rows: int, stream: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One observation per world in our form and in LeRobot's."""
    image = torch.randint(0, 256, (rows, 16, 16, 3), generator=stream, dtype=torch.uint8)
    state = torch.randn(rows, 2, generator=stream)
    return {STATE: state, CAMERA: image}, {STATE: state, CAMERA: image.movedim(-1, 1).float() / 255}


def test_actions_are_the_executors_and_noise_is_an_argument(trained):
    policy = get_policy_class("sinew").from_pretrained(trained)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(trained))
    spec = policy.policy.spec
    noise = torch.randn(1, *spec.noise_shape)
    executor = ChunkExecutor(policy.policy, 2, act_steps=3, noise=noise[0])
    stream = torch.Generator().manual_seed(2)
    for episode in range(2):
        policy.reset()
        executor.reset()
        for _ in range(7):
            obs, seen = observed(2, stream)
            action = after(policy.select_action(before(seen), noise=noise.expand(2, -1, -1)))
            torch.testing.assert_close(action, spec.action.denormalize(executor.act(obs)), rtol=0, atol=1e-5, msg=f"episode {episode}")
    policy.reset()
    first = policy.predict_action_chunk(before(seen), noise=noise.expand(2, -1, -1))
    policy.reset()
    assert first.shape == (2, 6, 2) and torch.equal(policy.predict_action_chunk(before(seen), noise=noise.expand(2, -1, -1)), first)
    policy.reset()
    assert not torch.equal(policy.predict_action_chunk(before(seen)), first)
    policy.predict_action_chunk({key: value[:1] for key, value in before(seen).items() if key in obs})  # another number of worlds


PIXELS = spaces.Box(0, 255, (16, 16, 3), np.uint8)


class Point(gymnasium.Env[Any, Any]):
    """A point that shall go home, as LeRobot sees environments."""

    _max_episode_steps = 8
    task, task_description = "go", "go home"
    observation_space = spaces.Dict({"agent_pos": spaces.Box(-9, 9, (2,)), "pixels": spaces.Dict({"front": PIXELS})})
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.steps = self.np_random.uniform(-1, 1, 2), 0
        return self.seen(), {"is_success": False}

    def seen(self) -> dict[str, Any]:
        return {"agent_pos": self.at.astype(np.float32), "pixels": {"front": np.full((16, 16, 3), 100, np.uint8)}}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at, self.steps = self.at + action, self.steps + 1
        return self.seen(), 0.0, False, self.steps >= self._max_episode_steps, {"is_success": bool(np.linalg.norm(self.at) < 0.5)}


def test_lerobots_evaluation_rolls_it_out(trained):
    policy = get_policy_class("sinew").from_pretrained(trained)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(trained))
    env = gymnasium.vector.SyncVectorEnv([Point, Point])
    same: Any = PolicyProcessorPipeline(steps=[])
    told = rollout(env, policy, same, same, before, after, seeds=[1, 2])
    assert told["action"].shape[0] == 2 and told["action"].shape[2] == 2 and torch.isfinite(told["action"]).all()
    low, high = torch.tensor(policy.config.action_low), torch.tensor(policy.config.action_high)
    assert (told["action"] >= low - 1e-5).all() and (told["action"] <= high + 1e-5).all()


def made(tmp_path: Path) -> tuple[Path, policies.PolicyModule]:
    """A run of ours."""
    spec = PolicySpec(observation=OBSERVATION, action=ACTION, horizon=5, n_obs_steps=2)
    stats = {STATE: {"mean": np.array([0.3, -0.2]), "std": np.array([2.0, 0.5])}}
    policy = policies.make("flow", spec, stats, SETTINGS, seed=2).eval()
    policies.save(policy, tmp_path / "run")
    return tmp_path / "run", policy


def test_a_run_becomes_a_checkpoint_and_a_run_again(tmp_path):
    run, ours = made(tmp_path)
    to_checkpoint(run, tmp_path / "checkpoint", n_action_steps=2)
    policy = get_policy_class("sinew").from_pretrained(tmp_path / "checkpoint", strict=True)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(tmp_path / "checkpoint"))
    noise = torch.randn(1, 5, 2)
    executor = ChunkExecutor(ours, 1, act_steps=2, noise=noise[0])
    stream = torch.Generator().manual_seed(2)
    for _ in range(5):
        obs, seen = observed(1, stream)
        torch.testing.assert_close(after(policy.select_action(before(seen), noise=noise)), ACTION.denormalize(executor.act(obs)))
    to_run(tmp_path / "checkpoint", tmp_path / "again", action_kind="ee_delta")
    again = policies.load(tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())
    np.testing.assert_allclose(again.spec.action.high, ACTION.high)
    assert again.spec.action.kind == "ee_delta" and again.spec.horizon == 5
    with pytest.raises(InputError, match=r"convert\.to_run makes it a run again"):
        load(str(tmp_path / "checkpoint"), OBSERVATION, ACTION)


def test_what_cannot_be_is_refused_in_one_line():
    features = {
        "input_features": {STATE: PolicyFeature(FeatureType.STATE, (2,))},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))},
        "device": "cpu",
    }
    with pytest.raises(InputError, match="unknown policy 'flwo': did you mean 'flow'"):
        SinewPolicy(SinewConfig(kind="flwo", **features))
    with pytest.raises(InputError, match="wraps another policy"):
        SinewPolicy(SinewConfig(kind="residual", **features))
    with pytest.raises(InputError, match="unknown field 'depth'"):
        SinewPolicy(SinewConfig(settings={"depth": 3}, **features))
    with pytest.raises(ValueError, match=r"n_action_steps 9 must be in 1\.\.4"):
        SinewConfig(horizon=4, n_action_steps=9, **features)
    with pytest.raises(ValueError, match="at least one observation"):
        SinewPolicy(SinewConfig(output_features=features["output_features"], device="cpu"))


FIND = """
from lerobot.configs.policies import PreTrainedConfig
from lerobot.utils.import_utils import register_third_party_plugins
before = "sinew" in PreTrainedConfig.get_known_choices()
register_third_party_plugins()
print(before, "sinew" in PreTrainedConfig.get_known_choices())
"""


def test_lerobot_finds_the_plugin_by_itself_once_it_is_a_distribution(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(ROOT / "lerobot_policy_sinew/pyproject.toml", source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(source)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", FIND], env=environment, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_sinew_itself_does_not_need_the_plugin():
    for folder in ("sinew", "policies", "robot_bridge", "rl", "sim", "demos", "rewards", "calibration"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "import lerobot_policy_sinew" not in path.read_text() and "from lerobot_policy_sinew" not in path.read_text(), path
    assert importlib.util.find_spec("lerobot_policy_sinew") is not None
