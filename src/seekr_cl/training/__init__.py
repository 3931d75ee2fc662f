"""Training: settings, the schedule of new and old batches, the Trainer, learning a task, running a stream."""

from seekr_cl.config.retention import RetentionConfig
from seekr_cl.config.seekr_config import SeekrConfig, config_from
from seekr_cl.memory.memory_config import MemoryConfig
from seekr_cl.replay.replay_config import ReplayConfig
from seekr_cl.training.learn import learn
from seekr_cl.training.learning import LearnResult
from seekr_cl.training.trainer import SeekrTrainer

__all__ = [
    "LearnResult",
    "MemoryConfig",
    "ReplayConfig",
    "RetentionConfig",
    "SeekrConfig",
    "SeekrTrainer",
    "config_from",
    "learn",
]
