"""Robots and networks that misbehave on purpose, so that what must hold can be shown to hold: see docs/faults.md."""
