"""Policies as graphs: what the files give is what the policy gives, and what cannot be given is refused without a trace."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import policies
import policies.export as writing
from policies.best_of import BestOfN
from policies.export import TOLERANCE, OnnxPolicy, TorchPolicy, export
from policies.export_graphs import graphs_of, innermost, loop_of, newest, planner
from policies.goals import PREFIX, GoalSettings
from policies.torch_runner import open_program, to_zip
from sinew.config import to_json
from sinew.errors import DataError, InputError, MissingDependency, SpecError

ROUNDING = 2.0**-20
"""Relative error of a network's output in single precision."""
FILES = (
    ("onnx", "residual-flow-mlp"),
    ("onnx", "energy-small"),
    ("torch", "flow-camera"),
    ("torch", "diffusion-mlp"),
    ("torch", "diffusion-small-unet"),
    ("torch", "edm-small-goal"),
    ("torch", "best_of-flow-mlp"),
    ("torch", "act-state"),
    ("torch", "consistency-flow-mlp"),
    ("torch", "composed-edm-mlp+flow-mlp-camera"),
)
"""Tracing takes seconds; these hold every family, backbone, wrapper and kind of loop. All others go through their modules."""
TINY: dict[str, dict[str, Any]] = {
    "energy-small": {"backbone": "mlp"},
    "flow-camera": {"backbone": "mlp", "camera": True, "n_obs_steps": 2},
    "diffusion-small-unet": {"backbone": "unet", "channels": (8, 16), "groups": 4, "kernel": 3, "clip_sample": False},
    "edm-small-goal": {
        "backbone": "transformer",
        "layers": 1,
        "heads": 2,
        "goal": GoalSettings(keys=("observation.environment_state",), scale=2.0),
    },
}
"""Policies with fewer layers than those of the toys, by "<type>-<variant>"."""


def make(toys, name):
    """A policy and its data."""
    if name not in TINY:
        return toys.make(name)
    settings, kind = dict(TINY[name]), name.partition("-")[0]
    camera, n_obs_steps = settings.pop("camera", False), settings.pop("n_obs_steps", 1)
    data = toys.ToyData(camera=camera)
    config = policies.registry.get(kind).Config(**{"hidden": (16,), "embedding_dim": 16, "image": toys.IMAGE, **settings})
    spec = toys.policy_spec(camera=camera, n_obs_steps=n_obs_steps, horizon=5)
    return policies.make(kind, spec, data.stats(), config, seed=3).eval(), data


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of an export with two steps, its policy and data; made once."""
    made: dict[str, tuple[Path, Any, Any]] = {}

    def get(toys, name: str) -> tuple[Path, Any, Any]:
        if name not in made:
            folder = tmp_path_factory.mktemp("export")  # exists and is empty
            policy, data = make(toys, name)
            assert export(policy, folder, format={n: f for f, n in FILES}[name], steps=2).folder == folder
            made[name] = folder, policy, data
        return made[name]

    return get


class Modules(OnnxPolicy):
    """The runner over the modules themselves, before any tracing."""

    def __init__(self, policy, steps) -> None:
        self.folder, self.spec, self.graphs = Path("memory"), to_json(policy.spec), graphs_of(policy, steps)
        described = {name: writing._signature(graph, ("batch", "candidates")) for name, graph in self.graphs.items()}
        self.manifest = {"graphs": described, "loop": loop_of(policy, steps)}

    def _session(self, graph):
        def run(names, feed):
            with torch.no_grad():
                return [v.numpy() for v in self.graphs[graph].module({k: torch.from_numpy(v) for k, v in feed.items()})]

        return SimpleNamespace(run=run)


def observations(toys, policy, data, rows):
    """Rows of the data, and goals that differ from them where the policy takes any."""
    batch = toys.batch(data, policy.spec, rows)
    obs = {key: batch[key] for key in policy.spec.observation}
    goal = getattr(innermost(policy), "goal", None)
    return obs if goal is None else {**obs, **{PREFIX + key: obs[key][:, -1].roll(1, 0) + 0.3 for key in goal.settings.keys}}


def arrays(tensors):
    return {key: value.numpy() for key, value in tensors.items()}


def check(toys, policy, data, runner, sizes):
    """Hold encode, chunk and correct of a runner against the policy."""
    for rows, n in sizes:
        obs = observations(toys, policy, data, rows)
        noise = torch.randn(rows, n, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(rows + 10))
        with torch.no_grad():
            context = policy.encode(obs)
            actions = policy.sample(context, n=n, noise=noise, steps=2).actions
            rounded = policy.sample(context, n=n, noise=noise * (1 + ROUNDING), steps=2).actions
        # the first step of an untrained diffusion policy divides by 0.006: what rounding alone moves says nothing of the graphs
        allowed = max(TOLERANCE, float((rounded - actions).abs().max()))
        assert np.abs(runner.chunk(arrays(obs), noise.numpy()) - actions.numpy()).max() < allowed
        if "encode" in runner.manifest["graphs"]:
            np.testing.assert_allclose(runner.encode(arrays(obs))["embedding"], context.embedding, atol=TOLERANCE)
            if "sample" in runner.manifest["graphs"]:
                whole = runner.run("sample", {**arrays(obs), "noise": noise.numpy()})["actions"]
                np.testing.assert_allclose(whole, actions, atol=allowed)
        assert ("correct" in runner.manifest["graphs"]) == ("correct" in policy.spec.capabilities)
        if "correct" in policy.spec.capabilities:
            seen, planned = newest(obs), actions[:, 0, 0] * 0.5
            with torch.no_grad():
                wanted = policy.correct(seen, planned)
            np.testing.assert_allclose(runner.correct(arrays(seen), planned.numpy()), wanted, atol=TOLERANCE)


def test_modules_and_loop_of_every_policy_do_what_it_does(case, toys):
    policy, data = toys.make(case)
    if "language" in policy.spec.capabilities:
        with pytest.raises(InputError, match="takes language, which no graph does: serve it with sinew serve"):
            graphs_of(policy, None)
        return
    runner = Modules(policy, 2)
    check(toys, policy, data, runner, ((1, 1), (5, 3)))
    if "step" not in runner.graphs:
        with pytest.raises(SpecError, match="no graph 'step': use chunk"):
            runner.sample({}, np.zeros(1))


@pytest.mark.parametrize(("format", "name"), FILES)
def test_files_give_what_the_policy_gives(format, name, toys, exported):
    folder, policy, data = exported(toys, name)
    runner = (OnnxPolicy if format == "onnx" else TorchPolicy)(folder)
    # Traced with 2 observations and 3 candidates; the manifest says 1 where the policy holds a number fast.
    sizes = {"composed-edm-mlp+flow-mlp-camera": ((1, 1),), "act-state": ((1, 1), (1, 7))}
    check(toys, policy, data, runner, sizes.get(name, ((1, 1), (5, 2), (3, 7))))
    assert runner.manifest["spec"] == to_json(policy.spec)
    low, high = (np.array(v) for v in (policy.spec.action.low, policy.spec.action.high))
    ends = np.stack([-np.ones(3), np.zeros(3), np.full(3, 9.0)])
    np.testing.assert_allclose(runner.denormalize(ends), [low, (low + high) / 2, high])


def test_one_step_of_a_file_is_the_denoiser(toys, exported):
    """D(x; sigma) at any level, not only those of the loop: the numbers of the manifest are all that is needed."""
    folder, policy, data = exported(toys, "diffusion-mlp")
    runner = TorchPolicy(folder)
    obs = observations(toys, policy, data, 3)
    context = policy.encode(obs)
    loop = runner.manifest["loop"]
    y = torch.randn(3, 1, policy.spec.horizon, 3, generator=torch.Generator().manual_seed(4))
    for step, scale_sigma in zip(loop["steps"], policy._plan(2, y)[0], strict=True):
        sigma = torch.full((3,), float(scale_sigma.sigma))
        with torch.no_grad():
            wanted = policy.denoise(y[:, 0] / float(scale_sigma.scale), sigma, context)
        numbers = {name: np.float32(step[name]).reshape(()) for name in ("level", "skip", "out")}
        found = runner.run("step", {"y": y.numpy(), **numbers, **runner.encode(arrays(obs))})["clean"][:, 0]
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE * max(1.0, float(wanted.abs().max())))


def test_loop_of_the_manifest_needs_numpy_and_onnxruntime_alone(toys, exported):
    """The loop as another program would write it, from the words and numbers of export.json."""
    folder, policy, data = exported(toys, "residual-flow-mlp")
    manifest = json.loads((folder / "export.json").read_text())
    sessions = {name: onnxruntime.InferenceSession(str(folder / graph["file"])) for name, graph in manifest["graphs"].items()}
    obs, noise = observations(toys, policy, data, 4), torch.randn(4, 6, *policy.spec.noise_shape)
    (embedding,) = sessions["encode"].run(None, arrays(obs))
    y = np.float32(manifest["loop"]["start"]) * noise.numpy()
    for step in manifest["loop"]["steps"]:
        level, skip, out, keep, pull = (np.array(step[key], dtype=np.float32) for key in ("level", "skip", "out", "keep", "pull"))
        clean = sessions["step"].run(None, {"y": y, "level": level, "skip": skip, "out": out, "embedding": embedding})[0]
        y = keep * y + pull * clean
    with torch.no_grad():
        wanted = policy.sample(policy.encode(obs), n=6, noise=noise, steps=2).actions
    np.testing.assert_allclose(y.clip(-1, 1), wanted, atol=TOLERANCE)
    assert {item["name"] for item in manifest["graphs"]["sample"]["inputs"]} == {*obs, "noise"}
    assert manifest["parity"].keys() == {"encode", "step", "chunk", "sample", "correct"}


# ---------------------------------------------------------------- no pickles, no foreign files


def program():
    return torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(1, 3),))


def rewritten(source: Path, target: Path, change) -> Path:
    """A copy of a zip with files changed, left out (None) or added by `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name, data in change({name: old.read(name) for name in old.namelist()}).items():
            new.writestr(name, data)
    return target


def test_a_program_holds_no_pickle_and_one_that_does_is_not_opened(tmp_path, toys, exported):
    folder = exported(toys, "flow-camera")[0]
    for file in folder.glob("*.pt2"):
        with zipfile.ZipFile(file) as archive:
            assert not any(archive.read(name)[:1] == b"\x80" or b"data.pkl" in archive.read(name) for name in archive.namelist())
    clean = tmp_path / "clean.pt2"
    clean.write_bytes(to_zip(program()))
    assert open_program(clean)(torch.randn(1, 3)).shape == (1, 2)
    torch.export.save(program(), tmp_path / "plain.pt2")  # as torch writes it: with a pickle of the inputs

    def say_pickled(files):
        name = next(name for name in files if name.endswith("weights_config.json"))
        return files | {name: files[name].replace(b'"use_pickle": false', b'"use_pickle":true', 1)}

    pickled = b"\x80\x04N."
    made = {
        "plain": tmp_path / "plain.pt2",
        "said": rewritten(clean, tmp_path / "said.pt2", say_pickled),
        "object": rewritten(clean, tmp_path / "object.pt2", lambda files: files | {"archive/data/constants/opaque_obj_0": pickled}),
        "legacy": rewritten(clean, tmp_path / "legacy.pt2", lambda files: files | {"archive/data/weights/model.pt": pickled}),
        "library": rewritten(clean, tmp_path / "library.pt2", lambda files: files | {"archive/data/aotinductor/model/m.so": b"ELF"}),
        "older": rewritten(clean, tmp_path / "older.pt2", lambda files: files | {"serialized_state_dict.pt": pickled, "version": b"8.1"}),
    }
    for name, file in made.items():
        with pytest.raises(DataError, match=rf"{name}\.pt2 holds .*, a pickle or code") as told:
            open_program(file)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("damage", ["text", "short", "no model", "missing"])
def test_a_damaged_program_is_told_in_one_line(tmp_path, damage):
    whole, file = to_zip(program()), tmp_path / "damaged.pt2"
    if damage == "text":
        file.write_text("not a zip")
    elif damage == "short":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "no model":
        (tmp_path / "whole.pt2").write_bytes(whole)
        rewritten(tmp_path / "whole.pt2", file, lambda files: {k: v for k, v in files.items() if "models/" not in k})
    with pytest.raises(DataError, match=r"damaged\.pt2 is not a \.pt2 file") as told:
        open_program(file)
    assert "\n" not in str(told.value)


def test_a_folder_that_was_changed_or_is_for_another_runner_is_refused(tmp_path, toys, exported):
    folder = exported(toys, "consistency-flow-mlp")[0]
    with pytest.raises(DataError, match="holds an export for 'torch', not 'onnx': export again with --format onnx"):
        OnnxPolicy(folder)
    with pytest.raises(DataError, match="does not exist: sinew export RUN --out"):
        TorchPolicy(tmp_path)
    manifest = json.loads((folder / "export.json").read_text())
    (tmp_path / "sample.pt2").write_bytes((folder / "sample.pt2").read_bytes() + b"\0")
    for text, message in [
        (json.dumps(manifest), r"sample\.pt2, graph 'sample', is missing or was changed after the export"),
        (json.dumps(manifest | {"format_version": 99}), "has format version 99, this Sinew reads 1: export again"),
        (json.dumps({"format_version": 1}), "does not describe an export"),
        (json.dumps(manifest | {"graphs": [1]}), "does not describe an export"),
        ("{", "cannot be read"),
    ]:
        (tmp_path / "export.json").write_text(text)
        with pytest.raises(DataError, match=message):
            TorchPolicy(tmp_path)


def test_wrong_inputs_are_told_before_a_graph_sees_them(toys, exported):
    folder, policy, data = exported(toys, "flow-camera")
    runner = TorchPolicy(folder)
    obs, noise = arrays(observations(toys, policy, data, 2)), np.zeros((2, 1, *policy.spec.noise_shape))
    assert runner.chunk(obs, noise).shape == (2, 1, 5, 3)  # float64 is taken
    state, camera = "observation.state", toys.CAMERA
    for wrong, message in [
        ({k: v for k, v in obs.items() if k != state}, "graph 'encode' needs 'observation.state'; given are"),
        (obs | {state: obs[state][:, :1]}, r"'observation.state' has shape \(2, 1, 4\), expected \(batch, 2, 4\)"),
        (obs | {camera: obs[camera] / 255.0}, r"'observation.images.front' is float64, expected uint8"),
        ({k: v[:0] for k, v in obs.items()}, "is empty"),
    ]:
        with pytest.raises(SpecError, match=message):
            runner.chunk(wrong, noise)
    with pytest.raises(SpecError, match="holds no graph 'correct': there are encode, step, sample"):
        runner.correct(obs, noise)


# ---------------------------------------------------------------- failures leave nothing


def test_an_existing_folder_is_left_as_it_is(tmp_path, toys):
    policy, _ = toys.make("flow-mlp")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(InputError, match=f"{name} exists and is not an empty folder: give another one"):
            export(policy, tmp_path / name, format="torch")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "notes.txt"]


def test_whatever_fails_leaves_nothing_behind(tmp_path, toys, monkeypatch):
    policy, _ = toys.make("flow-mlp")
    with pytest.raises(InputError, match="unknown export format 'onx': did you mean 'onnx'"):
        export(policy, tmp_path / "out", format="onx")
    with pytest.raises(SpecError, match="at least 1 step"):
        export(policy, tmp_path / "out", format="torch", steps=0)
    with pytest.raises(InputError, match="takes language"):
        export(toys.make("vla-causal")[0], tmp_path / "deep" / "down" / "out")
    ranked, _ = toys.make("energy-mlp")
    with pytest.raises(InputError, match="'sample' of this policy cannot be a graph") as told:
        export(BestOfN(ranked, 3, "energy").eval(), tmp_path / "out", format="torch")
    assert "\n" not in str(told.value)
    real, calls = writing._write, []

    def second_fails(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(writing, "_write", second_fails)
    with pytest.raises(KeyboardInterrupt):
        export(policy, tmp_path / "out", format="torch")
    assert len(calls) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_a_graph_that_differs_is_not_kept(error, tmp_path, toys, monkeypatch):
    class Wrong(TorchPolicy):
        def run(self, graph, given):
            return {name: value + error for name, value in super().run(graph, given).items()}

    monkeypatch.setattr(writing, "TorchPolicy", Wrong)
    with pytest.raises(InputError, match=r"the exported 'sample' differs from the policy by .*: nothing is kept"):
        export(make(toys, "consistency-flow-mlp")[0], tmp_path / "out", format="torch")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_does_not_run_is_not_kept(tmp_path, toys, monkeypatch):
    def fails(*_):
        raise RuntimeError("Non-zero status code\nat length")

    monkeypatch.setattr(TorchPolicy, "run", fails)
    with pytest.raises(InputError, match=r"the exported graphs do not run, nothing is kept: Non-zero status code$"):
        export(make(toys, "consistency-flow-mlp")[0], tmp_path / "out", format="torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_told_with_its_extra(package, tmp_path, toys, monkeypatch):
    real = writing.find_spec
    monkeypatch.setattr(writing, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(MissingDependency, match=rf"export to ONNX needs {package}: pip install 'sinew\[export\]'"):
        export(toys.make("flow-mlp")[0], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_best_of_takes_the_noise_of_all_candidates(toys, exported):
    """With noise of its own for every candidate, a file picks one of the base's chunks: the one that was seen most."""
    folder, policy, data = exported(toys, "best_of-flow-mlp")
    runner = TorchPolicy(folder)
    assert isinstance(planner(policy), BestOfN) and runner.manifest["loop"]["candidates"] == 4
    obs, noise = observations(toys, policy, data, 2), torch.randn(2, 3, 4, *policy.spec.noise_shape)
    best = runner.run("sample", {**arrays(obs), "noise": noise.numpy()})["actions"]
    base = policy.base
    with torch.no_grad():
        chunk = base.sample(base.encode(obs), n=12, noise=noise.flatten(1, 2), steps=2, features=True)
    cost = policy.counts.novelty(chunk.features.flatten(0, 1)).view(2, 3, 4)
    every = chunk.actions.view(2, 3, 4, *chunk.actions.shape[2:])
    for row, place in np.ndindex(2, 3):
        np.testing.assert_allclose(best[row, place], every[row, place, cost[row, place].argmin()], atol=TOLERANCE)


def test_the_manifest_names_its_files_by_content(toys, exported):
    folder = exported(toys, "energy-small")[0]
    manifest = json.loads((folder / "export.json").read_text())
    assert {p.name for p in folder.iterdir()} == {"encode.onnx", "step.onnx", "export.json"}
    assert all(hashlib.sha256((folder / g["file"]).read_bytes()).hexdigest() == g["sha256"] for g in manifest["graphs"].values())
    assert manifest["loop"]["kind"] == "descent" and manifest["loop"]["steps"] == 2
