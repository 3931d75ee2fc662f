"""Models: loading and writing them, adapters, quantization, and the models that pick weights by query."""
