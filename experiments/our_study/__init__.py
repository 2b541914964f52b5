"""Every objective, routing and calibrator on every task: see `python -m experiments.our_study`."""
