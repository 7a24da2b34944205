"""Rewards that tell how far an episode has come: nearest success, optimal transport to demonstrations, questions to a model."""
