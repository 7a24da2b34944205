"""ROS 2 itself, where it is sourced: the same transport through rclpy, and nodes with a life cycle, parameters and diagnostics.

Hot messages pass rclpy as raw CDR bytes, so the codec of `robot_bridge.dds` serves here too.
"""
