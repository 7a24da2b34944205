"""Labels that come late rewrite what is sampled, and can be taken back, also after a restart."""

from __future__ import annotations

import json

import pytest
import torch

from rl.interventions import SupervisedMix
from rl.labels import LEFT_OUT, Labels
from rl.replay import Ring
from sinew.errors import DataError, InputError

GAMMA = 0.5
OFF, ON = torch.zeros(1, dtype=torch.bool), torch.ones(1, dtype=torch.bool)


def ring_of(length: int = 64) -> Ring:
    return Ring(length, 1, {"x": ((1,), torch.float32)}, 1)


def play(ring: Ring, steps: int, *, reward: float = 0.0, terminated: bool = False, over: bool = True) -> None:
    """An episode; each frame holds the number of the step in the ring."""
    for step in range(steps):
        last = over and step == steps - 1
        ended, cut = (ON, OFF) if last and terminated else (OFF, ON if last else OFF)
        here = torch.tensor([[float(ring.count)]])
        final = {"x": torch.tensor([[ring.count + 0.5]])} if last else None
        ring.add({"x": here}, here, torch.tensor([reward if last else 0.0]), ended, cut, final=final)


def returns(labels: Labels, n_step: int = 3) -> dict[int, tuple[float, float]]:
    """{slot: (n-step return, discount)} of everything that can be sampled now."""
    mix = SupervisedMix(labels.ring, labels=labels)
    labels.settle()
    starts, _ = mix.starts()
    batch = labels.ring.gather(starts, n_step=n_step, gamma=GAMMA)
    return {int(s): (float(r), float(d)) for s, r, d in zip(batch.slot, batch.reward, batch.discount, strict=True)}


@pytest.fixture
def labels(tmp_path):
    return Labels(ring_of(), tmp_path / "labels.jsonl")


def test_a_time_out_that_was_a_success_becomes_one_in_the_n_step_returns(labels):
    play(labels.ring, 4)
    before = returns(labels)
    assert before[3] == (0.0, GAMMA) and before[1] == (0.0, GAMMA**3)  # a time-out bootstraps
    assert labels.say(True) == 0
    assert returns(labels) == {0: (0.0, GAMMA**3), 1: (GAMMA**2, 0.0), 2: (GAMMA, 0.0), 3: (1.0, 0.0)}


def test_a_success_in_the_middle_ends_the_episode_there(labels):
    play(labels.ring, 6)
    labels.say(True, episode=0, step=2)
    after = returns(labels)
    assert after == {0: (GAMMA**2, 0.0), 1: (GAMMA, 0.0), 2: (1.0, 0.0)}  # nothing starts after it
    assert labels.undo() == 0
    assert len(returns(labels)) == 6 and returns(labels)[5] == (0.0, GAMMA) and not (labels.ring.source & LEFT_OUT).any()


def test_a_false_success_bootstraps_from_where_it_ended(labels):
    play(labels.ring, 3, reward=1.0, terminated=True)
    assert returns(labels)[0] == (GAMMA**2, 0.0)
    labels.say(False)
    assert returns(labels)[2] == (0.0, GAMMA)
    batch = labels.ring.gather(torch.tensor([2]), gamma=GAMMA)
    assert batch.next_frames["x"].item() == 2.5  # the state after the last step, not that of another episode
    labels.say(True)
    assert returns(labels)[2] == (1.0, 0.0)
    labels.undo()
    labels.undo()
    assert returns(labels)[2] == (1.0, 0.0) and bool(labels.ring.terminated[2])  # as it was


def test_a_failure_that_nobody_called_a_success_stays_as_it_was(labels):
    play(labels.ring, 3, terminated=True)
    labels.say(False)
    assert returns(labels)[2] == (0.0, 0.0)


def test_the_label_of_an_episode_that_still_runs_waits_for_its_end(labels):
    play(labels.ring, 3)
    play(labels.ring, 4, over=False)
    labels.say(True, episode=1, step=1)
    assert labels.settle() == 0 and float(labels.ring.reward.sum()) == 0
    labels.ring.cut({"x": torch.zeros(1, 1)})
    assert labels.settle() == 1 and float(labels.ring.reward[4]) == 1.0


def test_anybody_may_append_and_what_is_no_label_is_told(labels):
    play(labels.ring, 3)
    with open(labels.path, "a") as f:
        f.write('{"episode": 0, "step": 1, "success": true}\nnonsense\n{"episode": 7, "success": true}\n{"episode": 0, "success": 1}\n')
        f.write('{"episode": 0, "st')  # half a line: somebody is writing
    assert set(returns(labels)) == {0, 1}
    assert len(labels.refused) == 3 and "episode 7" in labels.refused[1] and all("\n" not in line for line in labels.refused)
    with open(labels.path, "a") as f:
        f.write('ep": 2, "success": true}\n')
    assert set(returns(labels)) == {0, 1, 2}
    with pytest.raises(InputError, match="episode 3 is not in the replay, which holds 0 to 0"):
        labels.say(True, episode=3)


def test_nothing_to_label_and_nothing_to_take_back_are_told(labels):
    with pytest.raises(InputError, match="no episode has ended"):
        labels.say(True)
    with pytest.raises(InputError, match="no label to take back"):
        labels.undo()


def test_episodes_that_have_left_the_ring_are_forgotten(tmp_path):
    labels = Labels(ring_of(8), tmp_path / "labels.jsonl")
    for _ in range(5):
        play(labels.ring, 3)
        labels.settle()
    assert sorted(labels.episodes) == [3, 4]
    labels.say(True, episode=3)
    labels.settle()
    slots = [(9 + i) % 8 for i in range(3)]
    assert labels.ring.reward[slots].tolist() == [0.0, 0.0, 1.0]
    play(labels.ring, 7)  # overwrites it; its label must not touch what is there now
    labels.settle()
    assert float(labels.ring.reward.sum()) == 0.0


def test_a_restart_knows_episodes_and_labels_and_drops_what_was_lost(tmp_path, labels):
    for _ in range(2):
        play(labels.ring, 3)
    labels.say(True, episode=0, step=1)
    labels.settle()
    saved = labels.ring.state()
    labels.save(tmp_path / "state.json")
    play(labels.ring, 3)
    labels.say(True)  # of episode 2, which will be lost
    labels.settle()
    ring = ring_of()
    ring.load_state(saved)
    again = Labels(ring, labels.path)
    again.load(tmp_path / "state.json")
    assert again.next == 2 and sorted(again.episodes) == [0, 1]
    assert [json.loads(line)["episode"] for line in labels.path.read_text().splitlines()] == [0]
    assert returns(again)[1] == (1.0, 0.0)
    assert again.undo() == 0
    assert returns(again)[2] == (0.0, GAMMA) and len(returns(again)) == 6
    again.ring.load_state(ring_of().state())
    with pytest.raises(DataError, match="of different times"):
        again.load(tmp_path / "state.json")


def test_worlds_are_numbered_in_the_order_in_which_episodes_begin(tmp_path):
    ring = Ring(32, 2, {"x": ((1,), torch.float32)}, 1)
    labels = Labels(ring, tmp_path / "labels.jsonl")
    for step in range(6):
        ended = torch.tensor([step in (1, 3), step == 4])
        final = {"x": torch.zeros(int(ended.sum()), 1)}
        ring.add({"x": torch.zeros(2, 1)}, torch.zeros(2, 1), torch.zeros(2), torch.zeros(2, dtype=torch.bool), ended, final=final)
    labels.scan()
    assert {n: (e.world, e.begin, e.steps, e.over) for n, e in labels.episodes.items()} == {
        0: (0, 0, 2, True), 1: (1, 0, 5, True), 2: (0, 2, 2, True), 3: (0, 4, 2, False), 4: (1, 5, 1, False),
    }  # fmt: skip
    labels.say(True, episode=1)
    labels.settle()
    assert float(ring.reward[4 * 2 + 1]) == 1.0 and float(ring.reward.sum()) == 1.0


def test_sampling_settles_first(labels):
    play(labels.ring, 8)
    labels.say(True)
    batch = SupervisedMix(labels.ring, labels=labels).sample(64, n_step=8, gamma=1.0, generator=torch.Generator().manual_seed(0))[0]
    assert (batch.reward == 1.0).all() and (batch.discount == 0.0).all()


# ------------------------------------------------------------ where more than success is rewarded


class Height:
    """Rewards γ Φ(s') − Φ(s) and success; Φ is a tenth of the steps so far and 0 where the episode terminates. Forgets on demand."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, bool, bool]] = []
        self.forgotten = False

    def __call__(self, begin: int, steps: int, success: bool, terminated: bool) -> list[float] | None:
        self.asked.append((begin, steps, success, terminated))
        if self.forgotten:
            return None
        after = [0.1 * (k + 1) for k in range(steps)]
        after[-1] *= not terminated
        return [GAMMA * phi - 0.1 * k + (success and k == steps - 1) for k, phi in enumerate(after)]


@pytest.fixture
def paid(tmp_path):
    return Labels(ring_of(), tmp_path / "labels.jsonl", Height())


def test_an_episode_is_rewarded_once_when_it_is_over(paid):
    play(paid.ring, 3)
    play(paid.ring, 2, over=False)
    paid.settle()
    paid.settle()
    assert paid.assess.asked == [(0, 3, False, False)]
    torch.testing.assert_close(paid.ring.reward[:5], torch.tensor([0.05, 0.0, -0.05, 0.0, 0.0]))


def test_a_late_label_rewards_the_whole_episode_anew_and_can_be_taken_back(paid):
    play(paid.ring, 4)
    paid.settle()
    timed_out = paid.ring.reward[:4].clone()
    paid.say(True, step=2)
    paid.settle()
    torch.testing.assert_close(paid.ring.reward[:3], torch.tensor([0.05, 0.0, 1.0 - 0.2]))  # Φ = 0 where it terminates
    assert float(sum(GAMMA**k * r for k, r in enumerate(paid.ring.reward[:3]))) == pytest.approx(GAMMA**2)  # Φ₀ = 0: it telescopes
    assert bool(paid.ring.terminated[2]) and paid.assess.asked[-1] == (0, 3, True, True)
    paid.undo()
    paid.settle()
    torch.testing.assert_close(paid.ring.reward[:4], timed_out)
    assert not paid.ring.terminated[:4].any() and bool(paid.ring.truncated[3])


def test_a_false_success_is_rewarded_as_a_time_out(paid):
    play(paid.ring, 3, reward=1.0, terminated=True)
    paid.settle()
    assert paid.assess.asked == [(0, 3, True, True)] and float(paid.ring.reward[2]) == pytest.approx(0.8)
    paid.say(False)
    paid.settle()
    assert paid.assess.asked[-1] == (0, 3, False, False)
    torch.testing.assert_close(paid.ring.reward[:3], torch.tensor([0.05, 0.0, -0.05]))


def test_where_nobody_remembers_what_was_observed_a_late_label_tells_alone_and_says_so(paid):
    play(paid.ring, 3)
    paid.settle()
    paid.assess.forgotten = True
    paid.say(True)
    paid.settle()
    assert paid.ring.reward[:3].tolist() == [0.0, 0.0, 1.0]
    assert len(paid.refused) == 1 and "not remembered any more" in paid.refused[0]


def test_what_was_rewarded_is_known_after_a_restart(paid, tmp_path):
    play(paid.ring, 3)
    play(paid.ring, 2, over=False)
    paid.settle()
    paid.pay_running()
    torch.testing.assert_close(paid.ring.reward[:5], torch.tensor([0.05, 0.0, -0.05, 0.05, 0.0]))
    paid.save(tmp_path / "state.json")
    paid.ring.cut({"x": torch.zeros(1, 1)})
    again = Labels(paid.ring, paid.path, Height())
    again.load(tmp_path / "state.json")
    again.settle()
    assert again.assess.asked == [(3, 2, False, False)]  # the one that ran; the other is rewarded already
    again.say(True, episode=0)
    again.assess.forgotten = True
    again.settle()
    assert again.ring.reward[:3].tolist() == [0.0, 0.0, 1.0]
