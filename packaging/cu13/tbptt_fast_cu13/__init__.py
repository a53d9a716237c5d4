"""Kernels for NVIDIA GPUs; used through `tbptt_fast.cuda`."""
