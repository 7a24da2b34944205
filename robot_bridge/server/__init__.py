"""Parts of the policy server (`robot_bridge.policy_server`): its socket, its certificate, its requests, its batches, its figures."""
