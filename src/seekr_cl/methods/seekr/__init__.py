"""SEEKR: the method, the scoring of heads and samples, learned projections."""
