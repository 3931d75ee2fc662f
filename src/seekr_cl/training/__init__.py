"""Training: settings, the schedule of new and old batches, the Trainer, learning a task, running a stream."""

from seekr_cl.config.seekr_config import SeekrConfig, config_from
from seekr_cl.memory.config import MemoryConfig
from seekr_cl.replay.config import ReplayConfig
from seekr_cl.training.learn import learn
from seekr_cl.training.learning import LearnResult
from seekr_cl.training.trainer import SeekrTrainer

__all__ = ["LearnResult", "MemoryConfig", "ReplayConfig", "SeekrConfig", "SeekrTrainer", "config_from", "learn"]
