"""A benchmark row's ratio is above one where ours is better, whichever way better points."""

from __future__ import annotations

import pytest

from sinew.bench import Row


def test_ratio_points_the_right_way() -> None:
    assert Row(name="steps", unit="1/s", ours=30.0, peer="plain", peer_value=10.0).ratio == 3.0
    assert Row(name="latency", unit="ms", ours=2.0, peer="plain", peer_value=5.0, higher_is_better=False).ratio == 2.5


@pytest.mark.parametrize(("ours", "peer"), [(None, 1.0), (1.0, None), (None, None), (1.0, 0.0)])
def test_no_ratio_without_two_figures(ours: float | None, peer: float | None) -> None:
    assert Row(name="x", unit="", ours=ours, peer_value=peer).ratio is None
