# What type checkers and editors see of the names that __init__.py imports on first use; a test holds both equal.
from seekr_cl.config.seekr_config import SeekrConfig as SeekrConfig
from seekr_cl.errors import (
    ConfigError as ConfigError,
)
from seekr_cl.errors import (
    DataError as DataError,
)
from seekr_cl.errors import (
    MemoryFormatError as MemoryFormatError,
)
from seekr_cl.errors import (
    ModelError as ModelError,
)
from seekr_cl.errors import (
    OutputError as OutputError,
)
from seekr_cl.errors import (
    SeekrError as SeekrError,
)
from seekr_cl.errors import (
    TrainingError as TrainingError,
)
from seekr_cl.evaluation.api import evaluate as evaluate
from seekr_cl.evaluation.scores import ScoreMatrix as ScoreMatrix
from seekr_cl.memory.memory_config import MemoryConfig as MemoryConfig
from seekr_cl.memory.store import ReplayMemory as ReplayMemory
from seekr_cl.methods.base import (
    Context as Context,
)
from seekr_cl.methods.base import (
    LossTerm as LossTerm,
)
from seekr_cl.methods.base import (
    Method as Method,
)
from seekr_cl.methods.base import (
    Paper as Paper,
)
from seekr_cl.methods.base import (
    TaskResult as TaskResult,
)
from seekr_cl.methods.registry import METHODS as METHODS
from seekr_cl.methods.registry import register_method as register_method
from seekr_cl.models.loading import load_model as load_model
from seekr_cl.replay.replay_config import ReplayConfig as ReplayConfig
from seekr_cl.runs.stream_run import run as run
from seekr_cl.settings import Settings as Settings
from seekr_cl.tasks.stream import Stream as Stream
from seekr_cl.tasks.task import Example as Example
from seekr_cl.tasks.task import Task as Task
from seekr_cl.training.learn import learn as learn
from seekr_cl.version import __version__ as __version__
