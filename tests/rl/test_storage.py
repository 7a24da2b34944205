"""Replays in mapped files: the same numbers as in memory, whole after a crash, and bounded memory."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_replay import FRAME, fill
from test_resume import in_a_process

from rl.loop_config import LoopConfig
from rl.memory import Files, make_memory
from rl.replay import Ring
from rl.source import Source
from rl.storage import MappedFolder
from sinew.errors import DataError, InputError
from sinew.specs import ActionSpec

OWNER = {"task": "lift"}


def mapped(folder: Path, length: int, worlds: int, margin: int, opened: str | None = None) -> Ring:
    return Ring(length, worlds, FRAME, 2, margin=margin, store=MappedFolder(folder, OWNER, opened))


def drawn(ring: Ring, stride: int = 1) -> list[torch.Tensor]:
    """Everything that a batch holds, but for where it lay."""
    batch = ring.sample(64, n_step=2, stride=stride, generator=torch.Generator().manual_seed(0))[0]
    alive = batch.discount > 0
    after = [v[alive] for v in batch.next_frames.values()]
    return [batch.action, batch.reward, batch.discount, batch.span, batch.source, *batch.frames.values(), *after]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("stride", [1, 3])
def test_a_mapped_ring_draws_what_one_in_memory_does(tmp_path, stride):
    plain, files = Ring(9, 3, FRAME, 2), mapped(tmp_path / "r", 9, 3, margin=5)
    for part in range(12):
        for ring in (plain, files):
            fill(ring, 4, seed=part, end_probability=0.4)
        assert same(drawn(plain, stride), drawn(files, stride)), part
        assert len(plain) == len(files)


@pytest.mark.parametrize("after", [0, 1, 6])
def test_what_a_checkpoint_remembers_outlives_what_is_added_later(tmp_path, after):
    """Steps after the checkpoint are written over nothing that it needs, and done again they give the same."""
    ring = mapped(tmp_path / "r", 8, 2, margin=6)
    fill(ring, 29, seed=1, end_probability=0.5)
    state = {k: v.clone() for k, v in ring.state().items()}
    ring.kept()
    before = drawn(ring)
    assert not any(k.startswith(("frames.", "final.")) for k in state), "gigabytes are not copied"
    fill(ring, after, seed=2, end_probability=0.7)
    again = mapped(tmp_path / "r", 8, 2, margin=6, opened=ring.store.identity if ring.store else None)
    again.load_state(state)
    assert same(drawn(again), before)
    fill(again, after, seed=2, end_probability=0.7)
    assert same(drawn(again), drawn(ring))


def test_frames_outlive_a_process_that_is_killed(tmp_path):
    def dies() -> None:
        ring = mapped(tmp_path / "r", 8, 2, margin=6)
        fill(ring, 21, seed=1, end_probability=0.5)
        save_file(ring.state(), tmp_path / "state.safetensors")
        (tmp_path / "identity").write_text(ring.store.identity if ring.store else "")
        fill(ring, 5, seed=2, end_probability=0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    status = in_a_process(dies)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    ring = mapped(tmp_path / "r", 8, 2, margin=6, opened=(tmp_path / "identity").read_text())
    ring.load_state(load_file(tmp_path / "state.safetensors"))
    plain = Ring(8, 2, FRAME, 2)
    fill(plain, 21, seed=1, end_probability=0.5)
    assert same(drawn(ring), drawn(plain))


def test_a_replay_larger_than_memory_works(tmp_path):
    """A process that may not have the memory fills and samples it all the same."""

    def large() -> None:
        ctypes.CDLL(None).malloc_trim(0)  # what tests before this one left free is no room
        used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + 48 * 2**20, -1))
        layout, steps = {"images": ((64, 64, 3), torch.uint8)}, 128 * 2**20 // (64 * 64 * 3)
        with pytest.raises(RuntimeError, match="memory"):
            Ring(steps, 1, layout, 2)
        ring = Ring(steps, 1, layout, 2, margin=16, store=MappedFolder(tmp_path / "r", {}))
        off = torch.zeros(1, dtype=torch.bool)
        for i in range(steps + 8):
            image = torch.full((1, 64, 64, 3), i % 251, dtype=torch.uint8)
            ring.add({"images": image}, torch.zeros(1, 2), torch.zeros(1), off, off)
        batch = ring.sample(64)[0]
        for image, slot in zip(batch.frames["images"], batch.slot.tolist(), strict=True):
            assert slot < 8 or int(image[0, 0, 0]) == slot % 251

    assert in_a_process(large) == 0


def test_a_full_disk_is_told_in_one_line_before_anything_is_learned(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = MappedFolder(tmp_path / "r", OWNER)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(InputError, match=r"no room for the replay: .*free space") as told:
            folder.tensor("features", (2**16,), torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(told.value)


def test_a_replay_of_another_task_is_refused_by_name(tmp_path):
    mine = MappedFolder(tmp_path / "r", {"task": "lift"})
    with pytest.raises(DataError, match="another task or run: task is 'lift' there, 'peg' here"):
        MappedFolder(tmp_path / "r", {"task": "peg"}, mine.identity)
    MappedFolder(tmp_path / "r", {"task": "lift"}, mine.identity)
    with pytest.raises(DataError, match="not the one that the checkpoint belongs to"):
        MappedFolder(tmp_path / "r", {"task": "lift"}, "0" * 16)
    with pytest.raises(DataError, match="does not exist"):
        MappedFolder(tmp_path / "nowhere", {"task": "lift"}, "0" * 16)


class Worlds(Source):
    num_envs, places = 2, 3
    action_spec = ActionSpec(kind="joint_delta", low=(-1.0,) * 2, high=(1.0,) * 2, rate_hz=10.0, names=("x", "y"))


@pytest.mark.parametrize(("limit_gb", "files"), [(1.0, False), (0.0, True)])
def test_large_replays_go_to_files_by_themselves(tmp_path, limit_gb, files):
    config = LoopConfig(steps=600, replay_steps=300, checkpoint_every=100, replay_ram_gb=limit_gb)
    memory = make_memory(FRAME, Worlds(), config, torch.device("cpu"), Files(tmp_path / "replay", OWNER, None))
    assert [ring.store is not None for ring in memory.rings] == [files] * 3
    assert sorted(p.name for p in tmp_path.glob("replay/*")) == (["0", "1", "2"] if files else [])
    memory.forget_files()
    assert not list(tmp_path.glob("replay/*"))


def test_several_rings_are_drawn_from_as_one():
    """Every transition of every ring is as likely; slots tell rings apart."""
    from rl.memory import Memory

    rings = [Ring(6, 1, FRAME, 2), Ring(12, 2, FRAME, 2)]
    for i, ring in enumerate(rings):
        fill(ring, 12, seed=i, end_probability=0.2)
        ring.reward[:] = i
    memory = Memory(rings, torch.device("cpu"))
    valid = sum(ring.available() for ring in rings)
    assert valid == sum(len(ring.starts()) for ring in rings)
    counts = torch.zeros(6 + 24)
    for batch in memory.sample(500, updates=20, generator=torch.Generator().manual_seed(0)):
        counts += torch.bincount(batch.slot, minlength=30)
        assert torch.equal(batch.slot >= 6, batch.reward > 0.5)
    expected = 10_000 / valid
    assert int((counts > 0).sum()) == valid and float((counts[counts > 0] - expected).abs().max()) < 5 * expected**0.5
