"""Layers and optimizers for PyTorch on the native kernels."""
