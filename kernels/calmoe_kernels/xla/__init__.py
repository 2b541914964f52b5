"""Every operation in XLA: the reference for the kernels, on every platform."""
