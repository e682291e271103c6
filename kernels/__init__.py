"""Triton kernels, one file per op. They import torch and triton alone, and are installed as `pysora.kernels`."""
