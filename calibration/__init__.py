"""Extrinsic and intrinsic calibration. Nothing lives here yet; docs/architecture.md says what will."""
