"""Teleoperation: a person's device in the place of a policy, through the same loop and gate."""
