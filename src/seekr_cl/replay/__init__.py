"""Replay: which samples are kept, how often each comes back, and when."""
