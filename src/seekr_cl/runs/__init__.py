"""Runs: a stream of tasks, learnt and evaluated in order."""
