"""Every operation in XLA: the meaning of the kernels, on every platform."""
