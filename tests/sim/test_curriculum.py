"""Ranges grow while success holds, shrink where it does not, and go on exactly from what was saved."""

import json

import numpy as np
import pytest

import sim
from sim.curriculum import Curriculum
from sim.randomise import Parameter, Randomisation, Widening
from sim.sampling import Sampler
from sinew.errors import DataError

WIDENING = Widening(episodes=10, step=0.25)


def made(widening: Widening = WIDENING) -> Curriculum:
    randomisation = Randomisation(
        parameters=(
            Parameter(what="mass", of=("cube",), range=(0.5, 3.0), unit="factor"),
            Parameter(what="action_delay", range=(0, 2), unit="steps"),
        ),
        curriculum=widening,
    )
    return Curriculum(Sampler(randomisation, sim.make_interface("lift").scene), widening)


def played(curriculum: Curriculum, seeds: range, solved) -> None:
    """Episodes one after the other; `solved(values)` says how they end."""
    for seed in seeds:
        draws = curriculum.draw([seed])
        curriculum.told(draws.boundary, np.array([solved(draws.values[0])]))


def test_it_begins_with_what_the_scene_has() -> None:
    curriculum = made()
    assert curriculum.ends == (0, 1, 3), "a delay cannot be less than none"
    assert (curriculum.draw(range(50)).values == [1.0, 0.0]).all() and curriculum.share == 0.0


def test_success_everywhere_opens_the_whole_range() -> None:
    curriculum = made()
    played(curriculum, range(1000), lambda values: True)
    assert curriculum.share == 1.0
    values = curriculum.draw(range(2000)).values
    assert values.min(0) == pytest.approx([0.5, 0.0], abs=0.01) and values.max(0) == pytest.approx([3.0, 2.0], abs=0.01)
    at_ends = curriculum.draw(range(2000)).boundary >= 0
    assert 0.45 < at_ends.mean() < 0.55, "half of the episodes are at an end"


def test_an_end_that_is_too_hard_stays_and_the_others_move() -> None:
    curriculum = made()
    played(curriculum, range(3000), lambda values: values[0] <= 2.0)
    below, above, delay = (curriculum.reach[divmod(end, 2)] for end in curriculum.ends)
    # 1 + share * 2 <= 2 holds up to a share of one half: the end goes to and fro between that and the next
    assert below == 1.0 and delay == 1.0 and above in (0.5, 0.75)


def test_what_is_at_an_end_is_there_exactly() -> None:
    curriculum = made()
    curriculum.reach[:] = 0.5
    draws = curriculum.draw(range(400))
    for end, expected in ((0, 0.75), (1, 2.0)):
        assert (draws.values[draws.boundary == end, 0] == expected).all() and (draws.boundary == end).any()
    assert (draws.values[draws.boundary == 3, 1] == 1.0).all()


def test_it_goes_on_from_a_file_as_if_it_had_never_stopped() -> None:
    straight, first = made(), made()
    solved = lambda values: values[1] < 1.2  # noqa: E731
    played(straight, range(700), solved)
    played(first, range(333), solved)
    second = made()
    second.load_state(json.loads(json.dumps(first.state())))
    played(second, range(333, 700), solved)
    assert second.state() == straight.state()
    with pytest.raises(DataError, match=r"this curriculum is of payload, not mass\.cube, action_delay"):
        made().load_state(straight.state() | {"parameters": ["payload"]})


def test_worlds_tell_it_how_episodes_end() -> None:
    widening = Widening(episodes=2, step=0.5, share=1.0)
    delay = Parameter(what="action_delay", range=(0, 1), unit="steps")
    env = sim.make_vec("lift", 4, randomisation=Randomisation(parameters=(delay,), curriculum=widening))
    expert = sim.make_expert("lift", num_envs=4)
    seen = env.reset(range(4))
    expert.reset(seeds=range(4))
    assert env.curriculum is not None and env.curriculum.share == 0.0
    for _ in range(40):
        seen, _, terminated, truncated, _ = env.step(expert.act(seen))
        ended = (terminated | truncated).nonzero()[:, 0].tolist()
        expert.reset(ended, env.seeds[ended].tolist())
    assert env.curriculum.share > 0.0, "the expert solves what the scene is like"
    env.close()
