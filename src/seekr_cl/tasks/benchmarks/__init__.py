"""Benchmarks by name: what papers report on, streams made of it, and official archives turned into task folders."""

from seekr_cl.tasks.benchmarks.protocols import BENCHMARKS, Benchmark, Protocol
from seekr_cl.tasks.benchmarks.use import BenchmarkUse, get_benchmark

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkUse", "Protocol", "get_benchmark"]
