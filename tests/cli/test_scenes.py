"""No scene serves two purposes, whatever --seed says."""

import itertools

import pytest

from sinew.cli.scenes import BLOCK, LARGEST_SEED, PURPOSES, first_scene
from sinew.errors import InputError


def test_no_two_purposes_or_seeds_share_a_block():
    firsts = [first_scene(purpose, seed) for purpose, seed in itertools.product(PURPOSES, range(250))]
    assert len(set(firsts)) == len(firsts) and all(first % BLOCK == 0 for first in firsts)


def test_seeds_of_published_figures_stay_what_they_were():
    assert first_scene("demonstrations", 3) == 3_000_000 and first_scene("test", 1) == 21_000_000
    assert first_scene("gate") == 30_000_000 and first_scene("practice", 4) == 44_000_000


@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(InputError, match=str(seed)):
        first_scene("test", seed)
