"""Only what setup.cfg cannot say in a form that pip and colcon both read: see docs/architecture.md, packaging."""

from glob import glob

from setuptools import setup

setup(
    python_requires=">=3.11",
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/sinew"]),
        ("share/sinew", ["package.xml"]),
        ("share/sinew/launch", sorted(glob("launch/*.launch.py"))),
        # ros2 run sinew deploy: names too plain for the bin/ of a Python environment, where console scripts would go
        ("lib/sinew", sorted(glob("launch/nodes/*"))),
    ],
)
