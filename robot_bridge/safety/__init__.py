"""What stands between a command and the robot: limits, watchdogs, an operator's switches and the states they lead to."""
