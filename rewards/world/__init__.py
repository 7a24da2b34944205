"""Rewards from a learned model of what actions lead to."""
