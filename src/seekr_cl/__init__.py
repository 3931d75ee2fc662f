"""SEEKR continual learning for Hugging Face causal language models."""
