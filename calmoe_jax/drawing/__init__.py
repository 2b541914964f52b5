"""Pictures of calibration, from arrays; every one is a figure of its own."""
