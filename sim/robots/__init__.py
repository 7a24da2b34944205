"""Robots: our own arm as MJCF, and the config that describes any MJCF or URDF robot by names."""
