"""Where cameras are and how well that is known: boards, detection, solvers, estimator, observability. NumPy, SciPy and OpenCV only."""
