"""Plots of calibration, from arrays; each is a separate figure."""
