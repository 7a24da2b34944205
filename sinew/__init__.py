"""Sinew: record, train, evaluate, improve and deploy robot policies. This package is layer 0: numpy only."""

__version__ = "0.1.0"
