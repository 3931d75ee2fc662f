"""Tasks: reading them from files, turning their examples into tokens, and putting them in order."""

from seekr_cl.tasks.encoding import Encoded, Encoder, collate
from seekr_cl.tasks.stream import Stream, StreamSpec
from seekr_cl.tasks.task import Example, Task

__all__ = ["Encoded", "Encoder", "Example", "Stream", "StreamSpec", "Task", "collate"]
