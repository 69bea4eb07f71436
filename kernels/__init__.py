"""Triton kernels, one file per op. Nothing here imports the rest of the package."""
