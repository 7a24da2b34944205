"""Calibrating on a robot: a hand that is moved through the safety gate, pictures taken with it, and results told to ROS."""
