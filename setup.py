"""Only what setup.cfg cannot say in a form that pip and colcon both read: see docs/architecture.md, packaging."""

from glob import glob

from setuptools import setup

setup(
    python_requires=">=3.11",
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/sinew"]),
        ("share/sinew", ["package.xml"]),
        ("share/sinew/launch", glob("launch/*.launch.py")),
    ],
)
