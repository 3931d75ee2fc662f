"""Triton kernels for the divergence between attention rows; ``routing`` says which calls go to them."""
