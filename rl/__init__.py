"""Off-policy reinforcement learning on a frozen base policy. See docs/architecture.md for the five slots.

Replay (`rl.replay`), actor, decode, critic head (`rl.critic`) and actor objective (`rl.learner`) are what the methods differ
in; `rl.residual` puts them together for a residual on a chunked base.
"""
