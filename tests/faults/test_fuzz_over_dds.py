"""Fault 13 between processes: wild commands through loop, gate and network, judged by the driver and by MuJoCo's kinematics."""

from __future__ import annotations

import numpy as np

from robot_bridge.faults.fuzz import fuzz_over_dds


def test_wild_commands_on_the_network_reach_the_driver_within_its_limits(tmp_path, domain):
    """A small one; the benchmark sends ten thousand."""
    told = fuzz_over_dds(400, seed=int(np.random.default_rng().integers(1 << 30)), folder=tmp_path, domain=domain, rate_hz=100.0)
    assert told["refused"] == {} and told["sudden"] == 0 and told["violations"] == 0, told
    assert told["taken"] > 100 and told["beyond_rad"] <= 1e-6 and told["beyond_m"] <= 1e-6, told
