"""PyTorch on these kernels: layers, optimizers, and streams for truncated backpropagation."""
