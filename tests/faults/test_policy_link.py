"""Fault 10 on the way to a policy server: delay and loss only cost time, a partition and a cut are errors that hold the robot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import policies
from policies.remote import connect
from policies.wire import LinkError
from robot_bridge.faults.link import LinkFaults
from robot_bridge.faults.tcp_proxy import TcpProxy
from robot_bridge.policy_server import PolicyServer
from sinew.specs import STATE, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

pytest.importorskip("websockets")


@pytest.fixture
def policy() -> policies.PolicyModule:
    """A flow policy on three numbers."""
    torch.manual_seed(0)
    action = ActionSpec(kind="joint_position", low=(-1.0, -2.0), high=(1.0, 2.0), rate_hz=10.0, names=("a", "b"))
    spec = PolicySpec(observation=ObservationSpec({STATE: TensorSpec(shape=(3,))}), action=action, horizon=4)
    return policies.make("flow", spec, {STATE: {"mean": np.zeros(3), "std": np.ones(3)}}, {"hidden": [16], "steps": 3}).eval()


@pytest.fixture
def proxy(policy) -> Iterator[TcpProxy]:
    with PolicyServer(policy, port=0) as server, TcpProxy("127.0.0.1", server.port) as proxy:
        yield proxy


def test_a_bad_link_changes_no_chunk_and_a_partition_or_cut_is_a_link_error(policy, proxy):
    remote = connect(f"ws://127.0.0.1:{proxy.port}", timeout_s=5.0)
    obs = {STATE: torch.randn(1, policy.spec.n_obs_steps, 3)}
    noise = torch.randn(1, 1, *policy.spec.noise_shape)

    def chunk() -> torch.Tensor:
        return remote.sample(remote.encode(obs), noise=noise).actions

    with torch.no_grad():
        wanted = policy.sample(policy.encode(obs), noise=noise).actions
    proxy.set(LinkFaults(loss=0.1, delay_s=0.03, jitter_s=0.02, duplicate=0.3, reorder=0.3))
    assert all(torch.allclose(chunk(), wanted, atol=1e-6) for _ in range(5))
    proxy.set(LinkFaults(partition=True))
    with pytest.raises(LinkError):
        chunk()
    proxy.set()
    assert torch.allclose(chunk(), wanted, atol=1e-6)  # a new connection, and the answer to this question
    assert proxy.connections >= 2
