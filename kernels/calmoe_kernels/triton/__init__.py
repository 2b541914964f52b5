"""Kernels in Triton for NVIDIA GPUs: modules that import Triton, so import them where needed."""
