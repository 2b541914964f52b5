"""Triton kernels of dispatch; its modules import Triton, so import them where they are used."""
