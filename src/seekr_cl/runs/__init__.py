"""Runs: a stream of tasks, learned and evaluated in order."""
