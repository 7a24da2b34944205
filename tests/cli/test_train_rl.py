"""`sinew train-rl`: killed and resumed to the bit, loaded by the other verbs, two processes together, wrong input in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import policies
from sinew.cli import eval as evaluation
from sinew.cli import train_rl
from sinew.cli.main import main
from sinew.cli.train_rl import Args, settings, train
from sinew.cli.train_rl_methods import METHODS, fresh_policy
from sinew.errors import DataError, InputError

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
RANGES = {
    "parameters": [{"what": "action_delay", "range": [0, 2], "unit": "steps"}, {"what": "damping", "range": [0.5, 2.0], "unit": "factor"}],
    "curriculum": {"episodes": 2, "widen_at": 0.01, "narrow_at": 0.0, "step": 0.5, "share": 1.0},
}
SMALL = {
    "ppo": ("rollout_steps=10", "critic_hidden=[16]"),
    "fasttd3": ("random_steps=160", "critic_hidden=[16]", "batch_size=32", "critic_bins=11"),
}


def arguments(out: Path, algorithm: str, **more: Any) -> Args:
    values = {"task": "reach", "num_envs": 8, "steps": 960, "evaluate_every": 320, "hidden": (16,), "set": SMALL[algorithm]}
    return Args(out=out, algorithm=algorithm, **{**values, **more})


def command(args: Args) -> list[str]:
    """The command line as a script beside the run, on the few scenes of these tests."""
    script = args.out.parent / "sinew_on_few_scenes.py"
    easy = "from sim.tasks import reach\nreach.Reach.success = lambda self, view: view.tool[:, 2] < 0.12\n" if args.randomise else ""
    script.write_text(f"from sinew.cli import main, train_rl\ntrain_rl.GATE_EPISODES = 4\n{easy}raise SystemExit(main.main())\n")
    words = [str(script), "train-rl", "--json"]
    for name in ("out", "task", "algorithm", "num_envs", "steps", "evaluate_every"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    words += ["--randomise", str(args.randomise)] if args.randomise else []
    return [*words, "--hidden", *map(str, args.hidden), "--set", *args.set]


def rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("wall_s", "time")} for line in lines]


@pytest.fixture(autouse=True)
def few_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_rl, "GATE_EPISODES", 4)


def ranges(folder: Path, **other: Any) -> Path:
    file = folder / "ranges.json"
    file.write_text(json.dumps({**RANGES, **other}))
    return file


@pytest.mark.parametrize(("algorithm", "widening"), [*((name, False) for name in METHODS), ("ppo", True)])
def test_killed_and_resumed_is_what_an_uninterrupted_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, widening: bool
) -> None:
    """By SIGKILL, after a checkpoint and before the end; a real process is killed, and this one goes on, ranges that grow included."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    randomise = {"randomise": ranges(tmp_path)} if widening else {}
    if widening:  # as in `command`: ranges grow where somebody succeeds
        monkeypatch.setattr("sim.tasks.reach.Reach.success", lambda self, view: view.tool[:, 2] < 0.12)
    told = train(arguments(whole, algorithm, **randomise))
    assert told["steps"] == 960 and len(told["curve"]) == 4 and told["gate"]["n"] == 4
    words = [sys.executable, *command(arguments(broken, algorithm, **randomise))]
    process = subprocess.Popen(words, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (broken / "train_state.safetensors").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert evaluation.evaluate(evaluation.Args(run=broken, episodes=2))["n"] == 2, "the best so far can be used"
    assert train(arguments(broken, algorithm, **randomise))["curve"] == told["curve"]
    assert rows(whole) == rows(broken)
    one, other = (load_file(run / "policy.safetensors") for run in (whole, broken))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    if widening:
        reach = [row["reach"] for row in rows(whole) if "reach" in row]
        assert len(reach) == 3 and reach[0] < reach[-1], reach


def test_the_best_policy_so_far_is_there_when_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[dict[str, torch.Tensor]] = []

    def outcomes(*won: int) -> None:
        left = list(won)

        def evaluate(policy: Any, *_: Any, **__: Any) -> SimpleNamespace:
            if not left:
                raise KeyboardInterrupt
            played.append({name: value.clone() for name, value in policy.state_dict().items()})
            return SimpleNamespace(k=left.pop(0), n=4, successes=[])

        monkeypatch.setattr("policies.evaluate.evaluate", evaluate)
        with pytest.raises(KeyboardInterrupt):
            train(arguments(tmp_path / "run", "ppo"))

    def kept() -> int:
        """Which of those that were measured is on disk."""
        found = policies.load(tmp_path / "run").state_dict()
        return next(i for i, one in enumerate(played) if all(torch.equal(value, found[name]) for name, value in one.items()))

    outcomes(0, 3)
    assert kept() == 1
    outcomes(2)
    assert kept() == 1, "also of those that were measured before the interruption"


def test_what_is_drawn_is_what_improve_draws_and_the_gate_has_whole_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file, seed and number of worlds: `sinew improve` plays its first episodes with the same numbers."""
    import sim
    from rl.worlds import Worlds
    from sinew.cli import improve

    made: list[Any] = []
    first: list[Any] = []
    worlds, start = sim.worlds, Worlds.start
    monkeypatch.setattr(sim, "worlds", lambda *args: made.append(worlds(*args)) or made[-1])
    monkeypatch.setattr(
        Worlds, "start", lambda self, *args: (start(self, *args), first.append((made[-1].seeds.copy(), made[-1].values.copy())))[0]
    )
    file = ranges(tmp_path, curriculum=None)
    train(arguments(tmp_path / "run", "ppo", steps=80, randomise=file))
    gate, practice = made
    assert gate.curriculum is None and (gate.values == gate.randomiser.draw(gate.seeds).values).all()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["randomise"]["parameters"][0]["what"] == "action_delay"
    env: Any = improve._practice(sim.make_interface("reach"), improve.Args(run=tmp_path, out=tmp_path, num_envs=8, randomise=file), 0.99)
    seeds, values = first[0]
    assert len(set(values[:, 0].tolist())) == 8 and practice.randomiser.names == env.randomiser.names
    env.reset(seeds.tolist())
    assert (env.values == values).all()
    env.close()


@pytest.mark.parametrize("reward", ["sparse", "shaped"])
def test_improve_sees_ranges_that_grow_through_any_reward(tmp_path: Path, reward: str) -> None:
    import sim
    from sinew.cli import improve

    args = improve.Args(run=tmp_path, out=tmp_path, num_envs=2, reward=reward, randomise=ranges(tmp_path))
    env: Any = improve._practice(sim.make_interface("lift"), args, 0.99)
    assert env.curriculum is (env.env if reward == "shaped" else env).randomiser.curriculum and env.curriculum.share == 0.0
    env.close()


@pytest.mark.parametrize("algorithm", METHODS)
def test_a_run_is_a_run_like_any_other(tmp_path: Path, algorithm: str) -> None:
    run = tmp_path / "run"
    result = train(arguments(run, algorithm))
    policy = policies.load(run)
    assert isinstance(policy, policies.Direct) and policy.spec.horizon == 1
    normalizer = policy.encoder.normalizer
    assert float(normalizer.mean.abs().max()) > 0.1 and float(normalizer.scale.min()) < 0.5  # statistics are the policy's own
    found = evaluation.evaluate(evaluation.Args(run=run, episodes=4))
    assert found["n"] == 4 and (run / "eval" / "reach.json").exists()
    again = train(arguments(run, algorithm))  # finished: nothing is learned any more
    assert again["steps"] == result["steps"] and again["gate"] == result["gate"]
    state = json.loads((run / "config.json").read_text())
    assert state["verb"] == "train-rl" and state["task"] == "reach" and state[algorithm]["steps"] == 960
    assert not [path for path in run.rglob("*") if path.suffix in (".pt", ".pkl", ".pickle")]


def test_what_is_saved_is_what_was_measured(tmp_path: Path) -> None:
    """The actor behind its running statistics, and the policy with the same in its normaliser, give the same actions."""
    import sim
    from sinew.cli.train_rl_methods import _parts, handed_over

    interface = sim.make_interface("lift")
    policy = fresh_policy(interface, (16,), 0)
    actor, observe = _parts(policy)
    env = sim.worlds(interface, 6)
    seen = env.reset(0)
    actor.norm.update(torch.cat([observe(env.step(torch.zeros(6, 4))[0]) for _ in range(5)]))
    expected = actor(observe(seen)).detach()
    made = handed_over(actor, policy)
    window = {key: value[:, None] for key, value in seen.items()}
    torch.testing.assert_close(made.sample(made.encode(window)).actions[:, 0, 0].detach(), expected, atol=1e-5, rtol=1e-4)
    env.close()


@pytest.mark.skipif(importlib.util.find_spec("mujoco_warp") is None, reason="mujoco-warp is not installed")
@pytest.mark.parametrize("algorithm", METHODS)
def test_learning_on_warp(tmp_path: Path, algorithm: str) -> None:
    """Observations, rewards, replay and updates on the device of the worlds; here the CPU."""
    less = () if algorithm == "ppo" else ("random_steps=40",)
    few = {"num_envs": 4, "steps": 120, "evaluate_every": 120, "set": (*SMALL[algorithm], *less)}
    result = train(arguments(tmp_path / "run", algorithm, backend="warp", **few))
    assert result["steps"] == 120 and result["updates"] > 0 and result["gate"]["n"] == 4


def test_torchrun_learns_together(tmp_path: Path) -> None:
    """Two processes, gloo: one speaks, both have the same weights, steps are counted over both."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    out = tmp_path / "run"
    words = command(arguments(out, "ppo", steps=480, evaluate_every=320))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", *words]
    done = subprocess.run(launch, env=ENV, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] == 480 and result["updates"] == 20 * 2  # three rollouts of 2 x 8 worlds, the first tells what there is to see
    states = [load_file(folder / "train_state.safetensors") for folder in (out, out / "learners" / "1")]
    actors = [{k: v for k, v in state.items() if k.startswith(("actor.", "value."))} for state in states]
    assert actors[0].keys() == actors[1].keys() and all(torch.equal(v, actors[1][k]) for k, v in actors[0].items())


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--task", "reech"], "unknown task 'reech': did you mean 'reach'"),
        (["--algorithm", "pp"], "unknown algorithm 'pp': did you mean 'ppo'? known are fasttd3, ppo"),
        (["--reward", "dens"], "unknown reward 'dens': did you mean 'dense'"),
        (["--backend", "wrap"], "unknown backend 'wrap': did you mean 'warp'"),
        (["--task", "push"], "there is no dense reward for push: there is one for reach, lift, peg; or give --reward sparse"),
        (["--num-envs", "0"], "--num-envs 0: at least one world is needed"),
        (["--set", "gama=0.9"], "--set: unknown field 'gama'; known are"),
        (["--set", "gamma"], "--set 'gamma': expected name=value"),
        (["--set", "gamma=2.0"], "gamma 2.0 must be in (0, 1]"),
        (["--set", "learner.tau=0"], "tau 0"),
        (["--device", "cuda"], "device 'cuda' is not there"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--action", "torque"], "unknown action 'torque'"),
        (["--steps", "0"], "--steps 0: at least one is needed"),
        (["--evaluate-every", "0"], "--evaluate-every 0: at least one is needed"),
        (["--target", "2"], "--target 2 is a share of the gate's scenes"),
        (["--num-envs", "100000000"], "100000000 worlds do not fit on cpu: one takes "),
        (["--randomise", "nowhere.json"], "randomisation nowhere.json: No such file"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_out_free(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    out = tmp_path / "run"
    assert main(["train-rl", "--out", str(out), *words]) == 2
    error = capfd.readouterr().err
    assert error.startswith("sinew: ") and error.count("\n") == 1 and told in error, error
    assert not out.exists()


def test_another_run_in_the_folder_is_named(tmp_path: Path) -> None:
    args = arguments(tmp_path / "run", "ppo", steps=160)
    train(args)
    with pytest.raises(InputError, match="holds another run: algorithm is 'ppo' there, 'fasttd3' here"):
        train(arguments(tmp_path / "run", "fasttd3", steps=160))


def test_more_worlds_have_as_many_steps_each() -> None:
    import sim

    interface = sim.make_interface("reach")
    for algorithm, make in METHODS.items():
        few, many = (
            make(fresh_policy(interface, (8,), 0), interface, Args(out=Path("x"), algorithm=algorithm, num_envs=n), {}).config
            for n in (64, 8_192)
        )
        assert many.steps / 8_192 == few.steps / 64 and many.evaluate_every == 50 * 8_192 and few.evaluate_every == 20_000
        assert many.updates_per_step * 8_192 == pytest.approx(few.updates_per_step * 64) and many.gamma == few.gamma


def test_settings_nest() -> None:
    assert settings(("gamma=0.9", "learner.actor_lr=0.001", "learner.tau=1", "critic_head=scalar")) == {
        "gamma": 0.9,
        "learner": {"actor_lr": 0.001, "tau": 1},
        "critic_head": "scalar",
    }
    with pytest.raises(DataError, match="unknown field"):
        import sim

        interface = sim.make_interface("reach")
        METHODS["ppo"](fresh_policy(interface, (8,), 0), interface, arguments(Path("x"), "ppo"), {"update": {"eppochs": 1}})
