"""Rewards learned from what people and recorders said: success or failure of episodes, and which of two pieces was better."""
