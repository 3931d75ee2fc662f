"""The replay memory: old samples, their teachers' signals, head importance, in one portable directory."""

from seekr_cl.memory.hashing import accepted_hashes, model_hash, tokenizer_hash
from seekr_cl.memory.method_state import MethodState
from seekr_cl.memory.samples import MemoryTask, ReplaySample, TaskSamples, Totals
from seekr_cl.memory.signals import AttentionSignal, LogitSignal
from seekr_cl.memory.store import ReplayMemory

__all__ = [
    "AttentionSignal",
    "LogitSignal",
    "MemoryTask",
    "MethodState",
    "ReplayMemory",
    "ReplaySample",
    "TaskSamples",
    "Totals",
    "accepted_hashes",
    "model_hash",
    "tokenizer_hash",
]
