"""A stand-in for Isaac Gym Preview 4 that holds its callers to the documented order of calls, and moves bodies with MuJoCo.

Names, arguments, layouts and rules are those of NVIDIA's documentation as kept in the docstrings of isaacgym-stubs 1.1rc4.
"""

import sys

if "torch" in sys.modules:
    raise ImportError("PyTorch was imported before isaacgym modules. Please import torch after isaacgym modules.")
