import json
from itertools import pairwise

import pytest
import torch

from rewards import files
from rewards.files import RewardUnavailable, Situation
from rewards.latent import Encoder, EncoderConfig
from rewards.measures import rank_correlation
from rewards.progress import nearest
from rewards.progress.nearest import Progress, Successes
from sinew.errors import DataError, InputError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

SPEC = ObservationSpec({"observation.state": TensorSpec(shape=(2,))})
ACTION = ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=10.0, names=("x",))


def lines(count: int = 4, length: int = 21) -> list[torch.Tensor]:
    """Latents of successes that walk side by side from x = 0 to x = 1, 0.1 apart."""
    x = torch.linspace(0, 1, length)
    return [torch.stack([x, torch.full_like(x, 0.1 * i)], 1) for i in range(count)]


def test_progress_goes_with_the_way_and_falls_beside_it():
    successes = Successes.of(lines())
    assert float(successes.scale) == pytest.approx(0.1)
    on_the_way = torch.stack([torch.linspace(0, 1, 50), torch.full((50,), 0.15)], 1)
    assert rank_correlation(successes.progress(on_the_way)) > 0.99
    middle, beside, far = successes.progress(torch.tensor([[0.5, 0.1], [0.5, 0.6], [0.5, 5.0]]))
    assert float(middle) == pytest.approx(0.5, abs=0.03)
    assert float(beside) == pytest.approx(0.5 / (1 + 1.0), abs=0.03)  # 3 scales away: two more than usual, which counts half
    assert float(far) < 0.01


def test_progress_is_what_every_frame_says_weighted_by_closeness():
    """Against the same written out in float64, far from the origin, where squares are large."""
    torch.manual_seed(0)
    successes = Successes.of([torch.randn(30, 8) + 20.0 for _ in range(4)])
    seen = torch.randn(50, 8) * 2 + 20.0
    distance = torch.cdist(seen.double(), successes.latents.double()) / float(successes.scale)
    said = (torch.exp(-0.5 * distance.square()) * successes.time).sum(1) / torch.exp(-0.5 * distance.square()).sum(1)
    expected = said / (1 + ((distance.amin(1) - 1).clamp(min=0) / 2).square())
    torch.testing.assert_close(successes.progress(seen).double(), expected, atol=1e-4, rtol=1e-4)


def test_the_frames_that_are_asked_cover_the_way_evenly(monkeypatch):
    line = torch.arange(65.0)[:, None]
    assert sorted(nearest.spread(line, 9).tolist()) == list(range(0, 65, 8))
    assert sorted(nearest.spread(line, 100).tolist()) == list(range(65))
    assert len(nearest.spread(torch.zeros(5, 2), 3)) == 3
    monkeypatch.setattr(nearest, "MOST_ASKED", 40)
    few = Successes.of(lines(length=201))
    assert few.asked[0].shape == (2, 40)
    way = torch.stack([torch.linspace(0, 1, 50), torch.full((50,), 0.15)], 1)
    monkeypatch.setattr(nearest, "MOST_ASKED", 4096)
    torch.testing.assert_close(few.progress(way), Successes.of(lines(length=201)).progress(way), atol=0.05, rtol=0)


def test_the_nearest_success_counts_and_not_the_mean_of_all():
    """Two ways around: their mean lies where no success has ever been."""
    x = torch.linspace(0, 1, 21)
    above, below = torch.stack([x, 1 + 0 * x], 1), torch.stack([x, -1 + 0 * x], 1)
    successes = Successes.of([above, above + 0.01, below, below + 0.01])
    between, up = successes.progress(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert float(up) == pytest.approx(1.0, abs=0.05)
    assert float(between) < 0.01


def test_too_few_successes_are_no_reward():
    for episodes in ([], lines(1), [torch.zeros(1, 2), *lines(1)]):
        with pytest.raises(RewardUnavailable, match="at least 2"):
            Successes.of(episodes)


def test_many_frames_are_thinned_and_the_last_one_stays(monkeypatch):
    monkeypatch.setattr(nearest, "MOST_FRAMES", 30)
    successes = Successes.of(lines())
    assert len(successes.time) <= 30
    assert [float(successes.time[successes.episode == i][-1]) for i in range(4)] == [1.0] * 4


@pytest.fixture
def written(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(vectors={"observation.state": 2}, dim=2, hidden=4)).eval()
    with torch.no_grad():
        successes = Successes.of([encoder({"observation.state": line}) for line in lines()])
    nearest.save(tmp_path / "near.safetensors", encoder, successes, {})
    files.save(tmp_path / "reward.json", "progress", Progress(weights="near.safetensors"), {})
    return tmp_path


def situation(spec=SPEC, say=print) -> Situation:
    return Situation(observation=spec, action=ACTION, gamma=0.9, num_envs=2, max_episode_steps=50, say=say)


def step(before, after):
    never = torch.zeros(len(before), dtype=torch.bool)
    return {"observation.state": before, "next.observation.state": after, "success": never, "terminated": never}


def test_a_reward_file_pays_for_coming_closer_and_telescopes(written):
    reward = files.build(written / "reward.json", situation())
    way = torch.stack([torch.linspace(0, 1, 21), torch.full((21,), 0.1)], 1)
    paid = torch.stack([reward.reward(step(a[None].repeat(2, 1), b[None].repeat(2, 1)), {}) for a, b in pairwise(way)])
    discounts = 0.9 ** torch.arange(20)
    potential = reward.source.potential
    ends = 0.9**20 * potential({"observation.state": way[-1:]}) - potential({"observation.state": way[:1]})
    torch.testing.assert_close((discounts[:, None] * paid).sum(0), ends.repeat(2))
    assert float(ends[0]) > 0.5


def test_an_observation_without_what_it_looks_at_leaves_sparse_success_said_once(written):
    said = []
    reward = files.build(written / "reward.json", situation(ObservationSpec({"other": TensorSpec(shape=(2,))}), said.append))
    assert type(reward).__name__ == "Sparse"
    assert said == ["the reward looks at observation.state, and there is only other; success alone is rewarded from here on"]


def test_what_is_not_finite_leaves_sparse_success_said_once(written):
    said = []
    reward = files.build(written / "reward.json", situation(say=said.append))
    fine, wrong = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [float("nan"), 0.0]])
    for after in (fine, wrong, fine):
        paid = reward.reward(step(fine, after), {})
    assert paid.tolist() == [0.0, 0.0]
    assert len(said) == 1
    assert "world 1 is not finite" in said[0]


def test_a_file_without_a_success_leaves_sparse_success_said_once(written):
    encoder, successes = nearest.load(written / "near.safetensors")
    none = Successes(successes.latents[:0], successes.time[:0], successes.episode[:0], successes.scale)
    nearest.save(written / "near.safetensors", encoder, none, {})
    said = []
    reward = files.build(written / "reward.json", situation(say=said.append))
    assert type(reward).__name__ == "Sparse"
    assert len(said) == 1
    assert "holds no success; success alone is rewarded" in said[0]


def test_files_that_do_not_fit_are_refused_in_one_line(written):
    with pytest.raises(InputError, match="length 2, and here it is"):
        files.build(written / "reward.json", situation(ObservationSpec({"observation.state": TensorSpec(shape=(3,))})))
    data = json.loads((written / "reward.json").read_text())
    data["settings"]["weights"] = "../near.safetensors"
    (written / "reward.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="beside the reward file"):
        files.build(written / "reward.json", situation())
    (written / "near.safetensors").write_bytes(b"not weights")
    data["settings"]["weights"] = "near.safetensors"
    (written / "reward.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"near\.safetensors"):
        files.build(written / "reward.json", situation())
    (written / "near.safetensors").unlink()
    with pytest.raises(InputError, match="is not there"):
        files.build(written / "reward.json", situation())
