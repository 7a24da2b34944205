"""Topics of ROS 2 as a person's device: twists, joysticks, joint states and poses, whoever publishes them."""
