# make demo   the whole loop on this machine, in under 15 minutes on 2 cores
# make test   every check that CI runs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test lint types layers unit wheel colcon conformance ros isaaclab gl browser clean

setup: $(VENV)/.installed gl

$(VENV)/.installed: setup.cfg setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"Sinew needs Python 3.11 or newer, $(PYTHON) is {sys.version.split()[0]}; run make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Videos need an OpenGL that draws without a screen; everything else works without it.
gl: $(VENV)/.installed
	@$(BIN)/python .ci/ensure_gl.py

demo: setup
	$(BIN)/sinew demo

test: setup lint types layers unit wheel colcon conformance
	@echo "every check passed"

lint: $(VENV)/.installed
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/pyright

layers: $(VENV)/.installed
	$(BIN)/lint-imports --no-cache

# The page that moves a robot is tried in a real one; without it those tests say that they are left out.
browser: $(VENV)/.installed
	@$(BIN)/python .ci/ensure_browser.py

# One process more than CI has cores: some tests wait, for robots or for processes that they started.
unit: $(VENV)/.installed browser
	$(BIN)/python -m pytest -n 3 --dist loadfile

# A wheel, in a venv that has never seen this folder, run from elsewhere.
wheel: $(VENV)/.installed
	$(BIN)/python .ci/wheel_smoke.py

# What colcon installs, as on a robot's machine with ROS 2; colcon itself needs no ROS 2. From 80 on setuptools lacks what it calls.
.venv-colcon/.installed:
	test -x .venv-colcon/bin/python || $(PYTHON) -m venv .venv-colcon
	.venv-colcon/bin/pip install --quiet --disable-pip-version-check colcon-common-extensions==0.3.0 colcon-ros==0.5.0 'setuptools>=65,<80'
	touch $@

colcon: $(VENV)/.installed .venv-colcon/.installed
	$(BIN)/python .ci/colcon_build.py .venv-colcon/bin/colcon $(BIN)/python

# The real lerobot wants another torch, so it lives apart.
.venv-lerobot/.installed:
	test -x .venv-lerobot/bin/python || $(PYTHON) -m venv .venv-lerobot
	.venv-lerobot/bin/pip install --quiet --disable-pip-version-check lerobot==0.4.4 'transformers==4.57.1' num2words pytest feetech-servo-sdk==1.0.0
	touch $@

conformance: .venv-lerobot/.installed
	PYTHONPATH=. HF_HUB_OFFLINE=1 .venv-lerobot/bin/python -m pytest tests/conformance

# The real rclpy, with the middleware that PyPI has of it (Fast DDS; Cyclone DDS's comes with a ROS 2 installation only).
ROS_PYTHON ?= python3.12

.venv-ros/.installed:
	@$(ROS_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null || \
		{ echo "make ros needs Python 3.12, which the wheels of rclpy are for, and $(ROS_PYTHON) is none: make ros ROS_PYTHON=/path/to/python3.12"; exit 1; }
	test -x .venv-ros/bin/python || $(ROS_PYTHON) -m venv .venv-ros
	.venv-ros/bin/pip install --quiet --disable-pip-version-check -c constraints.txt 'ros-jazzy-rclpy[fastrtps]==7.1.6' ros-jazzy-sensor-msgs \
		ros-jazzy-std-srvs ros-jazzy-trajectory-msgs ros-jazzy-diagnostic-msgs cyclonedds rosbags mcap pytest
	touch $@

ros: .venv-ros/.installed
	PYTHONPATH=. ROS_DISTRO=jazzy .venv-ros/bin/python -m pytest -rs tests/robot_bridge/test_transport_conformance.py \
		tests/robot_bridge/test_real_peer.py tests/robot_bridge/test_ros.py

# Isaac Lab without Kit, which wants Python 3.12 and other versions of everything: 9 GB, and half an hour where nothing is compiled yet.
ISAACLAB_PYTHON ?= python3.12

.venv-isaaclab/.installed: setup.cfg
	@$(ISAACLAB_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null || \
		{ echo "make isaaclab needs Python 3.12, and $(ISAACLAB_PYTHON) is none: make isaaclab ISAACLAB_PYTHON=/path/to/python3.12"; exit 1; }
	test -x .venv-isaaclab/bin/python || $(ISAACLAB_PYTHON) -m venv .venv-isaaclab
	.venv-isaaclab/bin/pip install --quiet --disable-pip-version-check -e '.[isaaclab]' pytest
	touch $@

isaaclab: .venv-isaaclab/.installed
	PYTHONPATH=. .venv-isaaclab/bin/python -m pytest -rs tests/sim/test_isaac_lab.py tests/sim/test_backends.py -k 'isaac_lab or isaaclab'

clean:
	rm -rf $(VENV) .venv-lerobot .venv-colcon .venv-ros .venv-isaaclab build dist *.egg-info
