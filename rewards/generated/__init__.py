"""Rewards that a model wrote as code: a small language, evaluated for all worlds at once in a process that can do nothing else."""
