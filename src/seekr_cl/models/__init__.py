"""Models: loading and writing them, adapters, quantisation, and the models that pick weights by query."""
