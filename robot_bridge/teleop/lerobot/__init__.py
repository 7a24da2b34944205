"""LeRobot's teleoperators as a person's device."""
