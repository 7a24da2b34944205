"""A model writes rewards: what it is told, what is done with answers of all kinds, and which one is kept."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rewards.generated.fields import fields_of
from rewards.generated.generate import GenerateConfig, Request, generate, try_code
from rewards.generated.judge import read, tenths
from rewards.generated.prompt import code_in, question, success_curve, training_figures
from rewards.generated.sandbox import CodeRefused
from rewards.vlm.protocol import VLMReply, VLMUnavailable
from sinew.errors import DataError, InputError
from sinew.specs import ActionSpec, ObservationSpec, TensorSpec

OBSERVATION = ObservationSpec({"observation.state": TensorSpec(shape=(2,), unit="m", names=("height", "noise"))})
ACTION = ActionSpec(kind="ee_delta", low=(-1.0,), high=(1.0,), rate_hz=20.0, names=("dz",))
GOOD = "def potential(now):\n    h = clip(now.height, 0, 1)\n    return h, {'height': h, 'half': 0.5}\n"
FLAT = "def potential(now):\n    return 0.5\n"
WIDE = "def potential(now):\n    return 7 * now.height\n"
ROOT = "def potential(now):\n    return sqrt(now.noise)\n"


class Lifts:
    """Twelve episodes of a height: eight reach 1, four stay low."""

    observation_spec, action_spec, num_episodes, tasks = OBSERVATION, ACTION, 12, ("lift it",)

    def __init__(self):
        stream = np.random.default_rng(0)
        self.tops = [1.0] * 8 + [0.2] * 4
        heights = [np.linspace(0, top, 10) + 0.01 * stream.normal(size=10) for top in self.tops]
        self.columns = {
            "observation.state": np.stack([np.concatenate(heights), stream.normal(size=120)], 1).astype(np.float32),
            "action": np.full((120, 1), 0.1, np.float32),
        }

    def episode(self, index):
        return SimpleNamespace(start=10 * index, length=10, success=self.tops[index] > 0.5)

    def column(self, key):
        return self.columns[key]


class Scripted:
    """A model that says what it is told to, and keeps what it was asked."""

    model = "scripted"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def chat(self, text, images, **options):
        self.asked.append((text, options))
        if not self.answers:
            raise VLMUnavailable("quota is spent")
        return VLMReply(self.answers.pop(0))


def fenced(code):
    return f"First I think about it.\n```python\n{code}```\nThat is it."


@pytest.fixture(scope="module")
def recorded():
    return read(Lifts(), fields_of(OBSERVATION))  # type: ignore[arg-type]


REQUEST = Request("lift it", OBSERVATION, ACTION)


def test_code_is_judged_on_recorded_episodes(recorded):
    fields = fields_of(OBSERVATION)
    good = try_code(GOOD, fields, ACTION, recorded)
    assert good.passed and good.rank_correlation > 0.95 and good.auc == 1.0 and (good.successes, good.failures) == (8, 4)
    assert good.parts["half"] == {"min": 0.5, "mean": 0.5, "max": 0.5, "rank_correlation": 0.0}
    for code, said in ((FLAT, "does not grow"), (WIDE, "clipped"), (ROOT, "not finite")):
        found = try_code(code, fields, ACTION, recorded)
        assert not found.passed and said in "; ".join(found.problems) and found.score < good.score
    with pytest.raises(CodeRefused, match="not observed"):
        try_code("def potential(now):\n    return now.cube\n", fields, ACTION, recorded)


def test_a_dense_reward_is_judged_by_what_a_whole_episode_is_paid(recorded):
    found = try_code(
        "def reward(before, now, action):\n    return 0.8 * now.height - 0.1 * action[0]\n", fields_of(OBSERVATION), ACTION, recorded
    )
    assert found.passed and found.auc == 1.0
    turned = try_code("def reward(before, now, action):\n    return -now.height\n", fields_of(OBSERVATION), ACTION, recorded)
    assert turned.auc == 0.0 and any("success from failure" in p for p in turned.problems)


def test_the_best_of_the_candidates_comes_first_and_what_cannot_be_used_is_sent_back(recorded):
    model = Scripted(fenced("import os\n" + GOOD), fenced(FLAT), fenced(GOOD), "no idea", "still none")
    found = generate(model, REQUEST, recorded, GenerateConfig(candidates=3, rounds=1))
    assert [c.source for c in found[:2]] == [GOOD, FLAT] and found[0].judgement.passed
    assert found[2].judgement is None and found[2].problem
    assert "line 1: Import is refused" in model.asked[1][0] and "import os" in model.asked[1][0]
    assert [options["seed"] for _, options in model.asked] == [0, 0, 1, 2, 2]
    for word in (
        "lift it",
        "now.height: a number, m (height), seen from [-0.0",
        "action: 1 numbers",
        "def potential(now):",
        "clip",
        "```python",
    ):
        assert word in model.asked[0][0]


def test_a_second_round_is_told_how_the_best_did(recorded):
    model = Scripted(fenced(WIDE), fenced(GOOD))
    found = generate(model, REQUEST, recorded, GenerateConfig(candidates=1, rounds=2))
    assert WIDE.strip() in model.asked[1][0] and "clipped: scale it" in model.asked[1][0] and "total: min" in model.asked[1][0]
    assert found[0].source == GOOD and found[0].round == 1


def test_what_was_had_before_the_quota_was_spent_is_kept(recorded):
    assert generate(Scripted(fenced(GOOD)), REQUEST, recorded, GenerateConfig())[0].source == GOOD
    with pytest.raises(VLMUnavailable):
        generate(Scripted(), REQUEST, recorded, GenerateConfig())


def test_feedback_and_training_are_part_of_the_question():
    lines = [{"stage": "reward", "step": s, "parts": {"reach": {"min": 0.0, "mean": s / 100, "max": 1.0}}} for s in range(25)]
    lines += [{"step": 5, "k": 1, "n": 10}, {"stage": "train"}, {"step": 9, "k": 8, "n": 10}]
    found = tenths(lines)
    assert len(found["reach"]) == 10 and found["reach"][0] == {"min": 0.0, "mean": pytest.approx(0.01), "max": 1.0}
    assert success_curve(lines) == [0.1, 0.8] and tenths([]) == {}
    text = question("t", "e", "potential", earlier=GOOD, feedback=("it hits the table",), training=training_figures(found, [0.1, 0.8]))
    for words in ("it hits the table", "reach mean: 0.01, 0.04", "success rate: 0.1, 0.8", "An earlier attempt", GOOD.strip()):
        assert words in text


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\ndef a(): 1\n```", "def a(): 1\n"),
        ("```\nx\n```\n```py\ndef b(): 2\n```", "def b(): 2\n"),
        ("def c(): 3", "def c(): 3\n"),
        ("```python\r\ndef d(): 4\r\n```", "def d(): 4\n"),
        ("```python\ndef e(): 5", "def e(): 5\n"),
        ("", "\n"),
    ],
)
def test_code_is_found_in_answers_of_all_kinds(answer, code):
    assert code_in(answer) == code


def test_data_that_cannot_judge_is_said():
    fails = Lifts()
    fails.tops = [0.2] * 12
    with pytest.raises(InputError, match="none of the 12 episodes"):
        read(fails, fields_of(OBSERVATION))  # type: ignore[arg-type]
    broken = Lifts()
    broken.columns["action"][3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        read(broken, fields_of(OBSERVATION))  # type: ignore[arg-type]
