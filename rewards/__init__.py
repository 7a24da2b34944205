"""Rewards: sparse success, distance, and potential-based shaping of any potential."""
