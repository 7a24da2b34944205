import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl.replay import DEMO, HUMAN, POLICY, Mix, Ring
from sinew.errors import DataError, InputError, SpecError

FRAME = {"features": ((3,), torch.float32), "base_action": ((2,), torch.float32)}


class NaiveReplay:
    """Every step of every world in a plain list, transitions walked one step at a time."""

    def __init__(self, length: int) -> None:
        self.length, self.steps, self.next_step = length, [], {}

    def add(self, frame, action, reward, terminated, truncated, final, source):
        ended, row = [bool(a or b) for a, b in zip(terminated, truncated, strict=True)], []
        order = [i for i, e in enumerate(ended) if e]
        for w in range(len(ended)):
            after = {k: v[order.index(w)] for k, v in final.items()} if ended[w] else None
            step = self.next_step.get(w, 0)
            state = {k: v[w] for k, v in frame.items()}
            row.append((state, action[w], float(reward[w]), bool(terminated[w]), bool(truncated[w]), after, source, step))
            self.next_step[w] = 0 if ended[w] else step + 1
        self.steps.append(row)

    def transition(self, time: int, world: int, n_step: int, gamma: float, stride: int = 1):
        """(reward, discount, next features, span) or None if it cannot start here."""
        if stride > 1 and self.steps[time][world][7] % stride:
            return None
        total, chunk_end = 0.0, None
        for k in range(n_step * stride):
            if time + k >= len(self.steps):
                break
            _, _, reward, terminated, truncated, after, _, _ = self.steps[time + k][world]
            total += gamma**k * reward
            if terminated or truncated:
                return total, 0.0 if terminated else gamma ** (k + 1), after, k + 1
            if (k + 1) % stride == 0 and time + k + 1 < len(self.steps):
                chunk_end = (total, gamma ** (k + 1), self.steps[time + k + 1][world][0], k + 1)
        return chunk_end


def fill(ring: Ring, steps: int, seed: int, naive: NaiveReplay | None = None, end_probability: float = 0.25) -> None:
    """Random episodes in all worlds."""
    g = torch.Generator().manual_seed(seed)
    N = ring.num_envs
    for _ in range(steps):
        kind = torch.rand(N, generator=g)
        terminated = kind < end_probability / 2
        truncated = (kind >= end_probability / 2) & (kind < end_probability)
        ended = int((terminated | truncated).sum())
        frame = {"features": torch.randn(N, 3, generator=g), "base_action": torch.rand(N, 2, generator=g)}
        final = {"features": torch.randn(ended, 3, generator=g), "base_action": torch.rand(ended, 2, generator=g)}
        source = [POLICY, HUMAN][int(torch.randint(2, (1,), generator=g))]
        args = (frame, torch.rand(N, 2, generator=g), torch.randn(N, generator=g), terminated, truncated)
        ring.add(*args, final=final, source=source)
        if naive:
            naive.add(*args, final, source)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(2, 60),
    length=st.integers(2, 24),
    worlds=st.integers(1, 4),
    n_step=st.integers(1, 5),
    stride=st.integers(1, 4),
    end_probability=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_ring_equals_a_list_walked_step_by_step(seed, steps, length, worlds, n_step, stride, end_probability):
    ring, naive, gamma = Ring(length, worlds, FRAME, 2), NaiveReplay(length), 0.9
    fill(ring, steps, seed, naive, end_probability)
    expected = {
        time * worlds + w: naive.transition(time, w, n_step, gamma, stride)
        for time in range(max(0, steps - length), steps)
        for w in range(worlds)
    }
    expected = {k: v for k, v in expected.items() if v is not None}
    starts = ring.starts(stride)
    assert sorted(starts.tolist()) == sorted(expected)
    if not len(starts):
        return
    batch = ring.gather(starts, n_step=n_step, gamma=gamma, stride=stride)
    for row, start in enumerate(starts.tolist()):
        reward, discount, after, span = expected[start]
        frame, action = naive.steps[start // worlds][start % worlds][:2]
        assert int(batch.span[row]) == span
        torch.testing.assert_close(float(batch.reward[row]), reward, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(float(batch.discount[row]), discount, atol=1e-6, rtol=1e-6)
        assert torch.equal(batch.frames["features"][row], frame["features"])
        if discount:
            assert torch.equal(batch.next_frames["features"][row], after["features"])
            assert torch.equal(batch.next_frames["base_action"][row], after["base_action"])
        if stride == 1:
            assert torch.equal(batch.action[row], action)
            continue
        for k in range(stride):
            inside = k < span
            wanted = naive.steps[start // worlds + k][start % worlds][1] if inside else torch.zeros(2)
            assert torch.equal(batch.action[row, k], wanted)


def test_samples_are_uniform_over_the_valid_starts_and_nothing_else():
    ring = Ring(7, 2, FRAME, 2)
    fill(ring, 12, seed=3)
    valid = ring.starts().tolist()
    slots = {start % (ring.length * 2): 0 for start in valid}
    draws = 20_000
    for slot in ring.sample(draws, generator=torch.Generator().manual_seed(0))[0].slot.tolist():
        slots[slot] += 1
    expected = draws / len(valid)
    assert max(abs(n - expected) for n in slots.values()) < 5 * expected**0.5


def test_updates_are_split_from_one_draw():
    ring = Ring(20, 2, FRAME, 2)
    fill(ring, 30, seed=1)
    many = ring.sample(8, updates=3, n_step=2, generator=torch.Generator().manual_seed(5))
    whole = ring.sample(24, n_step=2, generator=torch.Generator().manual_seed(5))[0]
    assert len(many) == 3
    assert torch.equal(torch.cat([b.reward for b in many]), whole.reward)
    assert many[1].frames["features"].data_ptr() == many[0].frames["features"].data_ptr() + 8 * 3 * 4  # a view, not a copy


def test_each_frame_is_kept_once():
    ring = Ring(1000, 4, {"image": ((8, 8, 3), torch.uint8)}, 2)
    stored = sum(v.numel() * v.element_size() for v in ring._frames.values())
    assert stored < 1.1 * 1000 * 4 * 8 * 8 * 3


def test_final_frames_are_given_back_when_their_slots_are_overwritten():
    ring = Ring(8, 2, FRAME, 2)
    fill(ring, 400, seed=2, end_probability=0.9)
    assert ring._final_rows - len(ring._free) == int((ring._final >= 0).sum()) <= 16


def test_source_bits_choose_what_is_sampled():
    ring = Ring(40, 2, FRAME, 2)
    fill(ring, 40, seed=4)
    batch = ring.sample(64, source=HUMAN | DEMO)[0]
    assert (batch.source == HUMAN).all()
    with pytest.raises(InputError, match="no transition"):
        ring.sample(4, source=DEMO)


def test_relabelled_rewards_count_at_once():
    ring = Ring(10, 1, FRAME, 2)
    fill(ring, 10, seed=0, end_probability=0.0)
    slot = ring.gather(torch.tensor([4])).slot
    ring.reward[slot] = 7.0
    assert float(ring.gather(torch.tensor([4])).reward) == 7.0


def test_cut_lets_running_episodes_bootstrap_from_the_state_they_reached():
    ring = Ring(10, 2, FRAME, 2)
    fill(ring, 4, seed=0, end_probability=0.0)
    reached = {"features": torch.full((2, 3), 9.0), "base_action": torch.full((2, 2), 0.5)}
    ring.cut(reached)
    fill(ring, 2, seed=1, end_probability=0.0)
    batch = ring.gather(torch.tensor([3 * 2, 3 * 2 + 1]), n_step=3, gamma=0.9)
    assert batch.span.tolist() == [1, 1]
    torch.testing.assert_close(batch.discount, torch.full((2,), 0.9))
    assert torch.equal(batch.next_frames["features"], reached["features"])


@pytest.mark.parametrize("steps", [3, 8, 29])
def test_saving_and_restoring_is_exact(steps, tmp_path):
    from safetensors.torch import load_file, save_file

    ring, other = Ring(8, 3, FRAME, 2), Ring(8, 3, FRAME, 2)
    fill(ring, steps, seed=steps)
    save_file(ring.state(), tmp_path / "ring.safetensors")
    other.load_state(load_file(tmp_path / "ring.safetensors"))
    for r in (ring, other):
        fill(r, 5, seed=77)
    a, b = (r.sample(32, n_step=3, generator=torch.Generator().manual_seed(1))[0] for r in (ring, other))
    for name in ("action", "reward", "discount", "span", "source", "slot"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for key in FRAME:
        assert torch.equal(a.frames[key], b.frames[key])
        assert torch.equal(a.next_frames[key][a.discount > 0], b.next_frames[key][b.discount > 0])


def test_a_saved_ring_of_another_shape_is_refused():
    with pytest.raises(DataError, match="another shape"):
        Ring(8, 3, FRAME, 2).load_state(Ring(9, 3, FRAME, 2).state())


def step_of(ring: Ring, terminated: list[bool], truncated: list[bool], final: dict[str, Tensor] | None) -> None:
    N = ring.num_envs
    frame = {"features": torch.zeros(N, 3), "base_action": torch.zeros(N, 2)}
    ring.add(frame, torch.zeros(N, 2), torch.zeros(N), torch.tensor(terminated), torch.tensor(truncated), final=final)


def test_bad_steps_are_refused():
    ring = Ring(4, 1, FRAME, 2)
    with pytest.raises(InputError, match="empty"):
        ring.sample(1)
    with pytest.raises(SpecError, match="both"):
        step_of(ring, [True], [True], None)
    with pytest.raises(SpecError, match="no final frame"):
        step_of(ring, [False], [True], None)
    step_of(ring, [False], [False], None)
    with pytest.raises(InputError, match="unfinished"):
        ring.sample(1)
    with pytest.raises(SpecError, match="cannot hold"):
        Ring(1, 1, FRAME, 2)


def test_mix_takes_its_share_from_each():
    online, demos = Ring(20, 2, FRAME, 2), Ring(20, 1, FRAME, 2)
    fill(online, 20, seed=0)
    fill(demos, 20, seed=1)
    demos.source[:] = DEMO
    for fraction, wanted in ((0.5, 8), (0.25, 4), (0.0, 0), (1.0, 16)):
        for batch in Mix(online, demos, fraction).sample(16, updates=2, n_step=3):
            assert int((batch.source == DEMO).sum()) == wanted
            assert len(batch.reward) == 16
    with pytest.raises(InputError, match="share"):
        Mix(online, demos, 1.5)
