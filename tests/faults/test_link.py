"""What happens to packets on a bad link: rates, order, times, partitions; the same seed gives the same fate."""

from __future__ import annotations

import numpy as np
import pytest

from robot_bridge.faults.link import Link, LinkFaults
from sinew.errors import InputError

MS = 1_000_000


def through(faults: LinkFaults, packets: int = 4000, seed: int = 0, every_ns: int = MS) -> tuple[list[int], list[float]]:
    """Numbers that left in order, and how long each was on its way in seconds, polled every 0.1 ms."""
    link: Link[int] = Link(faults, seed)
    order, took = [], []
    for now_ns in range(0, packets * every_ns + 2_000 * MS, MS // 10):
        if now_ns % every_ns == 0 and now_ns < packets * every_ns:
            link.put(now_ns // every_ns, now_ns)
        for number in link.due(now_ns):
            order.append(number)
            took.append((now_ns - number * every_ns) / 1e9)
    return order, took


def test_a_clear_link_passes_everything_at_once_and_in_order():
    order, took = through(LinkFaults(), 500)
    assert order == list(range(500)) and max(took) == 0.0


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.2])
def test_loses_its_part(loss):
    n = 4000
    order, _ = through(LinkFaults(loss=loss), n)
    sigma = np.sqrt(n * loss * (1 - loss))
    assert abs(n - len(order) - n * loss) < 5 * sigma and order == sorted(order)


def test_delay_is_uniform_within_the_jitter_and_keeps_the_order():
    order, took = through(LinkFaults(delay_s=0.05, jitter_s=0.03), every_ns=100 * MS, packets=500)
    assert order == list(range(500)) and min(took) >= 0.02 and max(took) <= 0.0802
    assert np.mean(took) == pytest.approx(0.05, abs=0.005) and np.std(took) == pytest.approx(0.06 / np.sqrt(12), rel=0.1)
    order, took = through(LinkFaults(delay_s=0.05, jitter_s=0.03), 500)  # packets that would overtake wait instead
    assert order == list(range(500)) and max(took) <= 0.0802


def test_duplicates_and_reorders():
    order, _ = through(LinkFaults(duplicate=0.25), 4000)
    assert len(order) == pytest.approx(5000, abs=5 * np.sqrt(4000 * 0.25 * 0.75)) and set(order) == set(range(4000))
    order, _ = through(LinkFaults(reorder=0.25), 1000)
    assert sorted(order) == list(range(1000)) and order != sorted(order)


def test_a_partition_also_drops_what_is_on_its_way():
    link: Link[int] = Link(LinkFaults(delay_s=0.1))
    link.put(1, 0)
    link.faults = LinkFaults(partition=True)
    link.put(2, 0)
    assert link.due(10**9) == [] and link.lost == 2
    link.faults = LinkFaults()
    assert link.due(2 * 10**9) == [] and link.next_ns is None
    link.put(3, 2 * 10**9)
    assert link.due(2 * 10**9) == [3]


def test_the_seed_fixes_everything():
    faults = LinkFaults(loss=0.2, delay_s=0.02, jitter_s=0.02, duplicate=0.1, reorder=0.1)
    assert through(faults, 500, seed=4) == through(faults, 500, seed=4) != through(faults, 500, seed=5)


@pytest.mark.parametrize(("wrong", "told"), [({"loss": 1.5}, "loss 1.5"), ({"delay_s": 0.01, "jitter_s": 0.02}, "jitter_s 0.02")])
def test_what_no_link_can_do_is_refused(wrong, told):
    with pytest.raises(InputError, match=told):
        LinkFaults(**wrong)
