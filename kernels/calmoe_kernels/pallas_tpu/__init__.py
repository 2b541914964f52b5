"""Kernels in Pallas for TPU."""
