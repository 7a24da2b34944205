"""Rewards along the path of a keypoint, which a model that sees proposes: grasp, function and target points, and waypoints.

Source: KAGI (keypoint affordance-guided improvements), with MOKA's marks and lettered grid for the question; the potential is our own
(docs/rewards.md).
"""

from __future__ import annotations

from rewards.keypoint.settings import KeypointSettings, Place

__all__ = ["KeypointSettings", "Place"]
