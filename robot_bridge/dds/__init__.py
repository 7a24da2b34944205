"""ROS 2's wire format without a ROS installation: Cyclone DDS from pip, message types and hashes from rosbags.

Nothing here authenticates anybody: the pip package has no DDS Security. By default only this machine is talked to.
"""
